"""Pictures read back from a run's event files, without TensorBoard's server. Needs no torch."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event

from vggexp.data.catalog import DATASETS, folder_classes
from vggexp.errors import DataError
from vggexp.runs.predictions import Predictions

Array = NDArray[Any]


class Mistake(NamedTuple):
    image: int  # its place in the test set, from 0
    label: int
    predicted: int
    score: float  # of the predicted class
    label_score: float


def confusion(predictions: Predictions) -> Array:
    """[K, K] counts by true class (rows) and predicted class (columns)."""
    classes = predictions.scores.shape[1]
    places = predictions.labels.astype(np.int64) * classes + predictions.predicted
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def worst_mistakes(predictions: Predictions, count: int = 12) -> list[Mistake]:
    """The wrong answers of the greatest confidence."""
    scores, labels, predicted = *predictions, predictions.predicted
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-scores[wrong, predicted[wrong]], kind="stable")][:count]
    return [
        Mistake(
            int(i),
            int(labels[i]),
            int(predicted[i]),
            float(scores[i, predicted[i]]),
            float(scores[i, labels[i]]),
        )
        for i in worst
    ]


def class_names(config: dict[str, Any], count: int) -> tuple[str, ...]:
    """Of the data set or its folder; numbers where neither tells `count` names."""
    names: tuple[str, ...] = ()
    data = config.get("data.name")
    root = config.get("data.root")
    if isinstance(data, str) and data in DATASETS:
        names = DATASETS[data].classes
    elif data == "image_folder" and isinstance(root, str):
        try:
            names = folder_classes(Path(root))
        except (DataError, ValueError):  # moved, or never on this machine
            names = ()
    return names if len(names) == count else tuple(map(str, range(count)))


MOST_BYTES = 1 << 26  # of an event file; a run's has less than one MiB
PNG = b"\x89PNG\r\n\x1a\n"


def read_image_summary(folder: Path, tag: str) -> bytes | None:
    """The last picture of that tag as PNG; None where there is none, or no file can be read."""
    found = None
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
            values = [
                value
                for record in _records(content)
                for value in Event.FromString(record).summary.value
            ]
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
