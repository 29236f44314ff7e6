"""A run in TensorBoard: a view of metrics.jsonl, with its hyperparameters as one row of the HParams table.

The records are written here, without the library's writer thread: an error of the disk then shows where it happens.
"""

import contextlib
import io
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as chart_names
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import metadata as hparams_names
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter


def write_evaluation(
    folder: Path, scores: Mapping[str, float], epoch: int, text: str, confusion: NDArray[np.uint8]
) -> None:
    """scores: by tags that the run has too, at its epoch. text: Markdown. The folder's earlier events are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    scalars = [Summary.Value(tag=tag, simple_value=number) for tag, number in scores.items()]
    values = [*scalars, _text("evaluation", text), image("test/confusion", confusion)]
    now = time.time()
    with replace_event_files(folder) as file, file:
        for event in [
            *session_start_events(now),
            Event(summary=Summary(value=values), step=epoch, wall_time=now),
        ]:
            RecordWriter(file).write(event.SerializeToString())


def _text(tag: str, text: str) -> Any:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
    return Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))


Row = Mapping[str, Any]
HParam = bool | int | float | str
PREFIX = "events.out.tfevents."
CHARTS = {
    "loss": ["train/loss", "val/loss", "test/loss"],
    "accuracy": ["train/accuracy", "val/accuracy", "test/accuracy"],
    "seconds": ["time/.*_seconds"],
}


class TensorBoardLogger:
    """Writes one event file and removes the folder's earlier ones, once `rows`, the history of the run, stand in it.

    Then each (tag, step) stands once, also after a run was continued. The first failure is told to `warn` and ends the
    writing, never the run.
    """

    def __init__(
        self,
        folder: Path,
        hparams: Mapping[str, HParam],
        rows: Sequence[Row],
        warn: Callable[[str], None],
    ):
        """rows: metrics.jsonl so far, empty in a new run; hparams: the columns of the HParams table."""
        self._folder = folder
        self._warn = warn
        self._file: Any = None
        self._written: set[tuple[str, int]] = set()
        with self._guard():
            self._open(hparams, rows)

    def epoch(self, metrics: Row) -> None:
        """Every key of one object of metrics.jsonl as a scalar at its epoch."""
        with self._guard():
            self._scalars(metrics, metrics["epoch"], time.time())
            self._flush()

    def images(self, tag: str, picture: NDArray[np.uint8], epoch: int = 0) -> None:
        """picture: uint8 [H, W, 3], as vggexp.loggers.images makes them."""
        with self._guard():
            self._summary([image(tag, picture)], epoch, time.time())
            self._flush()

    def graph(self, model: Any, example: Any) -> bool:
        """The network as torch.jit.trace sees it, where this torch still can; whether it was written."""
        with self._guard():
            graph = _graph(model, example)
            if graph is not None and self._file is not None:
                self._write(Event(graph_def=graph, wall_time=time.time()))
                self._flush()
                return True
        return False

    def final(self, metrics: Row, epoch: int) -> None:
        """Scalars of the end, at the epoch whose weights were scored; what stands there already stays."""
        with self._guard():
            self._scalars(metrics, epoch, time.time())
            self._flush()

    def close(self, ok: bool) -> None:
        """Sets the run's status in the HParams table; nothing is written afterwards."""
        with self._guard():
            self._summary([_hparams_end(ok)], 0, time.time())
            self._flush()
        self._drop()

    def _open(self, hparams: Mapping[str, HParam], rows: Sequence[Row]) -> None:
        with replace_event_files(self._folder) as self._file:
            self._head(hparams, rows)

    def _head(self, hparams: Mapping[str, HParam], rows: Sequence[Row]) -> None:
        """Start marks and the history, placed in time as if the epochs had followed each other up to now."""
        wall_time = time.time() - sum(map(_seconds, rows))
        for event in session_start_events(wall_time):
            self._write(event)
        self._summary([_hparams_start(hparams, wall_time), layout("run", _charts())], 0, wall_time)
        for row in rows:
            wall_time += _seconds(row)
            self._scalars(row, row["epoch"], wall_time)
        self._flush()

    def _scalars(self, metrics: Row, epoch: int, wall_time: float) -> None:
        """A null of metrics.jsonl is a number that was not finite."""
        new = [
            tag
            for tag in metrics
            if tag not in ("epoch", "step") and (tag, epoch) not in self._written
        ]
        self._written.update((tag, epoch) for tag in new)
        numbers = {tag: float("nan") if metrics[tag] is None else metrics[tag] for tag in new}
        self._summary(
            [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()],
            epoch,
            wall_time,
        )

    def _summary(self, values: list[Any], step: int, wall_time: float) -> None:
        self._write(Event(summary=Summary(value=values), step=step, wall_time=wall_time))

    def _write(self, event: Any) -> None:
        if self._file is not None:
            RecordWriter(self._file).write(event.SerializeToString())

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """A view that cannot be written must not cost the run: the first failure is told and ends the writing."""
        try:
            yield
        except Exception as error:
            self._drop()
            self._warn(
                f"TensorBoard: {error} (no more events are written; metrics.jsonl stays complete)"
            )

    def _drop(self) -> None:
        file = self._file
        self._file = None
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()


@contextlib.contextmanager
def replace_event_files(folder: Path) -> Iterator[Any]:
    """A new event file, left open, that replaces the folder's earlier ones at the end; after an error it is removed."""
    earlier = [path for path in folder.iterdir() if path.name.startswith(PREFIX)]
    path = folder / f"{PREFIX}{_stamp(earlier):010d}.{socket.gethostname()}.{os.getpid()}"
    file = open(path, "xb")
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()  # half a history beside the earlier files would show epochs twice
        with contextlib.suppress(OSError):
            file.close()
        raise
    for old in earlier:
        old.unlink()


def session_start_events(wall_time: float) -> list[Any]:
    """A server that has read an earlier file drops its points at the second mark."""
    session = SessionLog(status=SessionLog.START)
    return [
        Event(file_version="brain.Event:2", wall_time=wall_time),
        Event(session_log=session, wall_time=wall_time),
    ]


def _stamp(earlier: Iterable[Path]) -> int:
    """The second for the file's name, later than every earlier one: loaders read files in the order of their names."""
    stamps = [path.name.removeprefix(PREFIX).split(".")[0] for path in earlier]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])


def _seconds(row: Row) -> float:
    return row.get("time/epoch_seconds") or 0.0


def _hparams_start(hparams: Mapping[str, HParam], wall_time: float) -> Any:
    info = SessionStartInfo(start_time_secs=wall_time)
    for key, value in hparams.items():
        kind = (
            "bool"
            if isinstance(value, bool)
            else "number"
            if isinstance(value, (int, float))
            else "string"
        )
        setattr(info.hparams[key], f"{kind}_value", value)
    return _hparams(
        hparams_names.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info)
    )


def _hparams_end(ok: bool) -> Any:
    status = Status.STATUS_SUCCESS if ok else Status.STATUS_FAILURE
    info = SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams(hparams_names.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: Any) -> Any:
    """The plugin reads the metadata only; an empty tensor carries it."""
    metadata = hparams_names.create_summary_metadata(data)
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams_names.NULL_TENSOR)


def _charts() -> list[Any]:
    """Training and validation in one chart each."""
    return [
        Chart(title=title, multiline=MultilineChartContent(tag=tags))
        for title, tags in CHARTS.items()
    ]


def layout(title: str, charts: list[Any]) -> Any:
    """What Custom Scalars shows."""
    content = Layout(category=[Category(title=title, chart=charts)])
    text = TensorProto(
        dtype=DT_STRING, string_val=[content.SerializeToString()], tensor_shape=TensorShapeProto()
    )
    metadata = chart_names.create_summary_metadata()
    return Summary.Value(tag=chart_names.CONFIG_SUMMARY_TAG, metadata=metadata, tensor=text)


def image(tag: str, picture: NDArray[np.uint8]) -> Any:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(picture).save(png, "png")
    height, width = picture.shape[:2]
    image = Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=png.getvalue()
    )
    return Summary.Value(tag=tag, image=image)


def _graph(model: Any, example: Any) -> bytes | None:
    """Silent: tracing is deprecated and going away, and a run loses nothing by it."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from torch import no_grad
            from torch.utils.tensorboard import _pytorch_graph as tracing

            with no_grad():
                nodes, _ = tracing.graph(model, example)  # type: ignore[no-untyped-call]
                return bytes(nodes.SerializeToString())
    except Exception:
        return None
