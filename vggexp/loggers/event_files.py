"""Reads and writes TensorBoard's event files. The only module that imports TensorBoard.

The records are written here, without the library's writer thread, so that an error of the disk
is raised by the call that causes the error. Needs no torch.
"""

import contextlib
import io
import os
import socket
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalar_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
    Status,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from vggexp.loggers.hparams import HParam, HParamsTable
from vggexp.runs.directory import EVENTS_PREFIX
from vggexp.system.files import open_no_follow, read_file

MAX_BYTES = 1 << 26  # of a file that is read; a run's event file has less than one MiB
EMPTY_SECONDS = 3600  # that a replaced file stays, empty; a loader polls far more often
PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of a PNG image

Value: TypeAlias = Summary.Value


@contextlib.contextmanager
def replace_event_files(folder: Path) -> Iterator[IO[bytes]]:
    """Yields a new event file, which stays open, and empties the folder's earlier ones.

    After an error in the block the new file is removed, and the earlier ones stay.
    """
    earlier = [path for path in folder.iterdir() if path.name.startswith(EVENTS_PREFIX)]
    name = f"{EVENTS_PREFIX}{_next_timestamp(earlier):010d}.{socket.gethostname()}.{os.getpid()}"
    path = folder / name
    file = open(path, "xb", opener=open_no_follow)
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()  # half a history beside the earlier files would show epochs twice
        with contextlib.suppress(OSError):
            file.close()
        raise
    for old in earlier:
        _empty_or_remove(old)


def _empty_or_remove(path: Path) -> None:
    """Empties a replaced file, or removes one that an earlier call emptied long ago.

    TensorBoard's Python loader opens the file that it reads by name at each poll. It would wait
    forever for a file that is gone, but it goes on to the next file from one that is empty. The
    file is emptied in place, because a loader would also read a temporary file beside it.
    """
    status = path.lstat()
    if stat.S_ISREG(status.st_mode) and status.st_size:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW))
    elif not stat.S_ISREG(status.st_mode) or time.time() - status.st_mtime > EMPTY_SECONDS:
        path.unlink()


def _next_timestamp(earlier: Iterable[Path]) -> int:
    """Returns the second for a file's name: now, or later than the earlier files.

    Loaders read the files in the order of their names.
    """
    timestamp = int(time.time())
    for path in earlier:
        text = path.name.removeprefix(EVENTS_PREFIX).split(".")[0]
        if text.isdecimal():
            timestamp = max(timestamp, int(text) + 1)
    return timestamp


def write_events(file: IO[bytes], events: Iterable[Event]) -> None:
    """Appends events to an open file, and flushes the file."""
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    file.flush()


def session_start_events(wall_time: float) -> list[Event]:
    """Returns the events at the beginning of a file.

    A server that has read an earlier file drops its points at the second event.
    """
    session = SessionLog(status=SessionLog.START)
    return [
        Event(file_version="brain.Event:2", wall_time=wall_time),
        Event(session_log=session, wall_time=wall_time),
    ]


def summary_event(values: Sequence[Value], step: int, wall_time: float) -> Event:
    """Returns an event with several values of one step."""
    return Event(summary=Summary(value=values), step=step, wall_time=wall_time)


def graph_event(graph: bytes, wall_time: float) -> Event:
    """Returns the event of a serialized GraphDef."""
    return Event(graph_def=graph, wall_time=wall_time)


def scalar(tag: str, value: float) -> Value:
    return Value(tag=tag, simple_value=value)


def image(tag: str, pixels: NDArray[np.uint8]) -> Value:
    """Returns an image.

    Args:
        pixels: uint8 [H, W, 3].
    """
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    height, width = pixels.shape[:2]
    summary = Summary.Image(
        height=height,
        width=width,
        colorspace=3,
        encoded_image_string=png.getvalue(),
    )
    return Value(tag=tag, image=summary)


def text(tag: str, markdown: str) -> Value:
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[markdown.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    return Value(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))


def hparams_start(hparams: Mapping[str, HParam], wall_time: float) -> Value:
    """Returns a row of the HParams table; each value keeps its type."""
    info = SessionStartInfo(start_time_secs=wall_time)
    for key, value in hparams.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = value
    data = HParamsPluginData(session_start_info=info)
    return _hparams(hparams_metadata.SESSION_START_INFO_TAG, data)


def hparams_end(ok: bool, wall_time: float) -> Value:
    """Returns the status of a row of the HParams table."""
    info = SessionEndInfo(
        status=Status.STATUS_SUCCESS if ok else Status.STATUS_FAILURE,
        end_time_secs=wall_time,
    )
    data = HParamsPluginData(session_end_info=info)
    return _hparams(hparams_metadata.SESSION_END_INFO_TAG, data)


def hparams_columns(table: HParamsTable, metrics: Sequence[str]) -> Value:
    """Returns the columns of the HParams table; without them TensorBoard shows other ones.

    Args:
        metrics: tags of the scalars that are columns.
    """
    hparams = []
    for key in table.columns:
        column_type = _column_type(table.values.get(key))
        # The mark means "differs among the runs". TensorBoard shows the marked columns first.
        is_first = key in table.main_columns
        hparams.append(HParamInfo(name=key, type=column_type, differs=is_first))
    scores = [MetricInfo(name=MetricName(tag=tag)) for tag in metrics]
    experiment = Experiment(hparam_infos=hparams, metric_infos=scores)
    return _hparams(hparams_metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


def _column_type(value: HParam | None) -> Any:
    if isinstance(value, bool):
        return DATA_TYPE_BOOL
    if isinstance(value, int | float):
        return DATA_TYPE_FLOAT64
    return DATA_TYPE_STRING


def _hparams(tag: str, data: HParamsPluginData) -> Value:
    """The plugin reads only the metadata, so the tensor is empty."""
    return Value(
        tag=tag,
        metadata=hparams_metadata.create_summary_metadata(data),
        tensor=hparams_metadata.NULL_TENSOR,
    )


def chart_layout(sections: Mapping[str, Mapping[str, str]]) -> Value:
    """Returns the charts of the Custom Scalars tab.

    The server merges the layouts of all runs. Sections of one title must have the same charts, or
    the server loses some.

    Args:
        sections: for each section its charts, and for each chart a regular expression that matches
            the tags of its lines.
    """
    layout = Layout()
    for title, charts in sections.items():
        section = Category(title=title)
        for chart_title, tags in charts.items():
            lines = MultilineChartContent(tag=[tags])
            section.chart.append(Chart(title=chart_title, multiline=lines))
        layout.category.append(section)
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    return Value(
        tag=custom_scalar_metadata.CONFIG_SUMMARY_TAG,
        metadata=custom_scalar_metadata.create_summary_metadata(),
        tensor=tensor,
    )


def read_image_summary(folder: Path, tag: str) -> bytes | None:
    """Returns the last image of a tag in a run's event files, without TensorBoard's server.

    Returns:
        PNG; None if there is no such image, or no file can be read.
    """
    latest = None
    for path in sorted(folder.glob(f"{EVENTS_PREFIX}*")):
        try:
            images = _read_images(read_file(path, MAX_BYTES), tag)
        except (OSError, DecodeError):
            continue
        if images:
            latest = images[-1]
    return latest


def _read_images(content: bytes, tag: str) -> list[bytes]:
    images = []
    for record in _records(content):
        for value in Event.FromString(record).summary.value:
            png = value.image.encoded_image_string
            if value.tag == tag and png.startswith(PNG):
                images.append(png)
    return images


def _records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a file, except for a last one that is cut off.

    A record lies between its length with a checksum (12 bytes) and its own checksum (4 bytes).
    """
    start = 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        begin = start + 12
        start = begin + length + 4
        if start <= len(content):
            yield content[begin : begin + length]
