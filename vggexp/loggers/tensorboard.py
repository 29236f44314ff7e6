"""Shows a run in TensorBoard.

The event file is a view of metrics.jsonl and steps.jsonl. The hyperparameters are one row of the
HParams table.
"""

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vggexp.loggers import event_files
from vggexp.loggers.hparams import HParamsTable
from vggexp.system.files import make_inner_dir
from vggexp.training.loop import EpochMetrics, StepMetrics

POSITION = ("epoch", "step")  # the keys of a row that are no metrics
METRICS = ("accuracy", "loss")
SPLITS = {"val": "validation", "train": "training", "test": "test"}
# The charts of the Custom Scalars tab: section -> title -> tag. A chart has one line for each run.
CHARTS = {
    metric: {f"{metric}, {name}": f"{metric}/{split}$" for split, name in SPLITS.items()}
    for metric in METRICS
}
CHARTS["time"] = {
    "seconds of an epoch": "time/epoch_seconds$",
    "images per second": "time/images_per_second$",
}
# The columns of the HParams table that are scores.
SCORES = ("accuracy/val", "accuracy/test", "loss/val", "loss/test")


def scalar_tag(key: str) -> str:
    """Returns the tag of a key of metrics.jsonl.

    TensorBoard sorts by name and opens the first two groups. So the metric stands before the
    split, and no other group comes before accuracy and loss.
    """
    split, _, metric = key.partition("/")
    if metric in METRICS:
        return f"{metric}/{split}"
    if key == "images_per_second":
        return f"time/{key}"
    return key


def write_evaluation(
    folder: Path,
    scores: Mapping[str, float],
    epoch: int,
    text: str,
    confusion: NDArray[np.uint8],
    split: str = "test",
) -> None:
    """Writes an evaluation as a run of its own; replaces the folder's earlier events.

    Args:
        scores: by keys that the evaluated run has too.
        epoch: of the evaluated weights.
        text: Markdown.
        confusion: an image, uint8 [H, W, 3].
        split: test or val.
    """
    make_inner_dir(folder)
    values = [event_files.scalar(scalar_tag(key), score) for key, score in scores.items()]
    values.append(event_files.text("evaluation", text))
    values.append(event_files.image(f"{split}/confusion", confusion))
    now = time.time()
    events = event_files.session_start_events(now)
    events.append(event_files.summary_event(values, epoch, now))
    with event_files.replace_event_files(folder) as file, file:
        event_files.write_events(file, events)


class TensorBoardLogger:
    """Writes one event file, and empties the folder's earlier ones.

    The new file begins with the history of the run, so that each (tag, step) exists once, also
    after a run was resumed. The first failure is reported to `warn`. A failure ends the writing,
    but never the run.

    Args:
        hparams: the run's row and the columns of the HParams table.
        rows: metrics.jsonl so far; empty in a new run.
        steps: steps.jsonl so far.
    """

    def __init__(
        self,
        folder: Path,
        hparams: HParamsTable,
        rows: Sequence[EpochMetrics],
        warn: Callable[[str], None],
        steps: Sequence[StepMetrics] = (),
    ):
        self._folder = folder
        self._warn = warn
        self._file: IO[bytes] | None = None
        self._written: set[tuple[str, int]] = set()
        with self._guard():
            with event_files.replace_event_files(folder) as self._file:
                self._write_history(hparams, rows, steps)

    def step(self, metrics: StepMetrics) -> None:
        """Writes the metrics of a step against the number of optimizer steps."""
        with self._guard():
            self._write([self._step_scalars(metrics, time.time())])

    def epoch(self, metrics: EpochMetrics) -> None:
        """Writes every key of an epoch as a scalar."""
        with self._guard():
            self._write([self._scalars(metrics, metrics["epoch"], time.time())])

    def images(self, tag: str, image: NDArray[np.uint8], epoch: int = 0) -> None:
        """Writes an image.

        Args:
            image: uint8 [H, W, 3], as vggexp.loggers.images draws it.
        """
        with self._guard():
            value = event_files.image(tag, image)
            self._write([event_files.summary_event([value], epoch, time.time())])

    def graph(self, model: Any, example: Any) -> bool:
        """Writes the model's graph as torch.jit.trace records it; returns whether that worked."""
        with self._guard():
            graph = _trace(model, example)
            if graph is not None and self._file is not None:
                self._write([event_files.graph_event(graph, time.time())])
                return True
        return False

    def final(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Writes the final metrics at the epoch of the evaluated weights.

        Tags that exist at this epoch are left out.
        """
        with self._guard():
            self._write([self._scalars(metrics, epoch, time.time())])

    def sync(self) -> None:
        """Waits until the events are on the disk."""
        with self._guard():
            if self._file is not None:
                os.fsync(self._file.fileno())

    def close(self, ok: bool | None) -> None:
        """Writes the run's status of the HParams table, and closes the file.

        Args:
            ok: whether the run has finished; None for a paused run, which stays without a status.
        """
        if ok is not None:
            with self._guard():
                now = time.time()
                status = event_files.hparams_end(ok, now)
                self._write([event_files.summary_event([status], 0, now)])
        self._close_file()

    def _write_history(
        self,
        hparams: HParamsTable,
        rows: Sequence[EpochMetrics],
        steps: Sequence[StepMetrics],
    ) -> None:
        """Writes the epochs with times as if they had followed each other up to now.

        The steps of an epoch have equal distances. Those of the epoch under way stand at its start.
        """
        wall_time = time.time() - sum(map(_epoch_seconds, rows))
        header = [
            event_files.hparams_start(hparams.values, wall_time),
            event_files.hparams_columns(hparams, SCORES),
            event_files.chart_layout(CHARTS),
        ]
        events = event_files.session_start_events(wall_time)
        events.append(event_files.summary_event(header, 0, wall_time))
        steps_of_epoch: dict[int, list[StepMetrics]] = {}
        for step in steps:
            steps_of_epoch.setdefault(step["epoch"], []).append(step)
        for row in rows:
            seconds = _epoch_seconds(row)
            points = steps_of_epoch.pop(row["epoch"], [])
            for index, step in enumerate(points, 1):
                step_time = wall_time + seconds * index / len(points)
                events.append(self._step_scalars(step, step_time))
            wall_time += seconds
            events.append(self._scalars(row, row["epoch"], wall_time))
        for points in steps_of_epoch.values():
            events += [self._step_scalars(step, wall_time) for step in points]
        self._write(events)

    def _scalars(self, metrics: Mapping[str, Any], epoch: int, wall_time: float) -> Any:
        scalars = {}
        for key, number in metrics.items():
            if key not in POSITION:
                scalars[scalar_tag(key)] = number
        return self._event(scalars, epoch, wall_time)

    def _step_scalars(self, metrics: StepMetrics, wall_time: float) -> Any:
        scalars = {}
        for key, number in metrics.items():
            if key not in POSITION:
                scalars[f"step/{key}"] = number
        return self._event(scalars, metrics["step"], wall_time)

    def _event(self, scalars: Mapping[str, Any], step: int, wall_time: float) -> Any:
        """Returns an event of the scalars that have not been written at this step.

        A null of a JSON file is a number that was not finite; its scalar is NaN.
        """
        values = []
        for tag, number in scalars.items():
            if (tag, step) in self._written:
                continue
            self._written.add((tag, step))
            values.append(event_files.scalar(tag, float("nan") if number is None else number))
        return event_files.summary_event(values, step, wall_time)

    def _write(self, events: Sequence[Any]) -> None:
        if self._file is not None:
            event_files.write_events(self._file, events)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Warns about the first error and ends the writing: a view must not cost the run."""
        try:
            yield
        except Exception as error:
            self._close_file()
            self._warn(
                f"TensorBoard: {error} (no more events are written; metrics.jsonl stays complete)"
            )

    def _close_file(self) -> None:
        file = self._file
        self._file = None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _epoch_seconds(row: EpochMetrics) -> float:
    return row.get("time/epoch_seconds") or 0.0


def _trace(model: Any, example: Any) -> bytes | None:
    """Returns the model as a serialized GraphDef; None if torch cannot trace the model.

    Prints no warnings: tracing is deprecated and will be removed, and a run loses nothing by that.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import torch
            from torch.utils.tensorboard import _pytorch_graph

            # Traced here, because torch's own function repeats the trace as a check, and imports
            # torch.distributed.tensor and sympy for it: 1.4 s at the end of every run.
            with torch.no_grad(), _pytorch_graph._set_model_to_eval(model):
                traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
                graph, _ = _pytorch_graph.graph(traced, example)  # type: ignore[no-untyped-call]
                return bytes(graph.SerializeToString())
    except Exception:
        return None
