"""Pictures read back from a run's event files, without TensorBoard's server. Needs no torch."""

import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

MOST_BYTES = 1 << 26  # of an event file; a run's has less than one MiB
PNG = b"\x89PNG\r\n\x1a\n"


def picture(folder: Path, tag: str) -> bytes | None:
    """The last picture of that tag as PNG; None where there is none, or no file can be read."""
    found = None
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
            values = [value for record in _records(content) for value in Event.FromString(record).summary.value]
        except (OSError, DecodeError):
            continue
        pictures = [value.image.encoded_image_string for value in values if value.tag == tag]
        found = next((png for png in reversed(pictures) if png.startswith(PNG)), found)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """Each stands between its length with a checksum and its own checksum; a last one cut short is left out."""
    start = 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        start += 12 + length + 4
        if start <= len(content):
            yield content[start - length - 4 : start - 4]
