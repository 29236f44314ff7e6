"""Reports the epochs of a run: on the console, in metrics.jsonl and in TensorBoard.

metrics.jsonl is the source of truth. TensorBoard is a view of that file.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vggexp.loggers.console import Console, LaterEpochs, Progress
from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.runs import jsonl
from vggexp.runs.directory import METRICS
from vggexp.training.loop import EpochMetrics


class RunLogger:
    """Reports every finished epoch to all outputs.

    Args:
        epochs: number of epochs of the run.
        hparams: the columns of TensorBoard's HParams table.
        history: the epochs so far, of a resumed run.
        rest_seconds: pause after each epoch but the last.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        epochs: int,
        hparams: Mapping[str, Any],
        history: Sequence[EpochMetrics],
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
        self.tensorboard = TensorBoardLogger(folder, hparams, history, warn=console.line)

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]:
        """Counts the batches of an epoch in the block."""
        label = f"epoch {epoch}/{self.epochs}"
        later = LaterEpochs(self.epochs - epoch, self.epoch_seconds, self.rest_seconds)
        return self.console.progress(label, batches, done, later)

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
