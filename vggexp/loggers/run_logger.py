"""Reports a run: on the console, in metrics.jsonl and steps.jsonl, and in TensorBoard.

The two files are the source of truth. TensorBoard is a view of them.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vggexp.errors import CheckpointError
from vggexp.loggers.console import Console, LaterEpochs, Progress
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.runs import jsonl
from vggexp.runs.directory import METRICS, STEPS
from vggexp.runs.steps import read_steps
from vggexp.training.loop import EpochMetrics, StepMetrics


class RunLogger:
    """Reports every finished epoch to all outputs.

    Args:
        epochs: number of epochs of the run.
        hparams: TensorBoard's HParams table.
        history: the epochs so far, of a resumed run.
        step: the optimizer steps so far. Later lines of steps.jsonl come from an attempt that was
            killed; the run takes these steps again.
        rest_seconds: pause after each epoch but the last.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        epochs: int,
        hparams: HParamsTable,
        history: Sequence[EpochMetrics],
        step: int = 0,
        rest_seconds: float = 0,
    ):
        self.folder = folder
        self.console = console
        self.epochs = epochs
        self.rest_seconds = rest_seconds
        self.epoch_seconds: float | None = None  # of the last epoch
        if history:
            self.epoch_seconds = history[-1]["time/epoch_seconds"]
        jsonl.rewrite(folder / METRICS, history)
        steps = self._keep_steps(step)
        self.tensorboard = TensorBoardLogger(folder, hparams, history, console.line, steps)

    def _keep_steps(self, last: int) -> list[StepMetrics]:
        """Removes the lines of steps.jsonl after a step, and returns the others.

        A file that is damaged or too large is set aside as steps.jsonl.corrupt.
        """
        path = self.folder / STEPS
        if not os.path.lexists(path):
            return []
        try:
            rows = [row for row in read_steps(self.folder) if row["step"] <= last]
        except CheckpointError as error:  # only a curve is lost, which must not cost the run
            reason, _, _ = str(error).partition("; ")
            path.rename(path.with_name(f"{STEPS}.corrupt"))
            self.console.line(f"warning: {reason}; the curves inside the epochs start again")
            return []
        jsonl.rewrite(path, rows)
        return rows

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]:
        """Counts the batches of an epoch in the block."""
        label = f"epoch {epoch}/{self.epochs}"
        later = LaterEpochs(self.epochs - epoch, self.epoch_seconds, self.rest_seconds)
        return self.console.progress(label, batches, done, later)

    def step(self, metrics: StepMetrics) -> None:
        """Reports a point of the curves inside the epochs."""
        jsonl.append(self.folder / STEPS, metrics, wait=False)
        self.tensorboard.step(metrics)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Reports a finished epoch."""
        self.epoch_seconds = metrics["time/epoch_seconds"]
        jsonl.append(self.folder / METRICS, metrics)
        self.tensorboard.epoch(metrics)
        self.console.epoch(metrics, self.epochs)

    def log(self, text: str) -> None:
        """Prints one line or several."""
        for line in text.splitlines():
            self.console.line(line)

    def best_effort(self, name: str, draw: Callable[[], None]) -> None:
        """Draws images. An error is only a warning, because images are a view of the run."""
        try:
            draw()
        except Exception as error:
            self.console.line(f"warning: {name} left out: {error}")
