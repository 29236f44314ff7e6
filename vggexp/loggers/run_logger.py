"""What watches a run: the console, metrics.jsonl as the record of truth, and TensorBoard as a view of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from vggexp.loggers.console import Console, Progress
from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.runs import jsonl
from vggexp.runs.directory import METRICS

_Row = dict[str, Any]


class RunLogger:
    """Tells every finished epoch to all sinks."""

    def __init__(
        self, folder: Path, console: Console, epochs: int, hparams: _Row, history: Sequence[_Row]
    ):
        self.folder = folder
        self.console = console
        self.epochs = epochs
        jsonl.rewrite(folder / METRICS, history)
        self.tensorboard = TensorBoardLogger(folder, hparams, history, warn=console.line)

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]:
        return self.console.progress(f"epoch {epoch}/{self.epochs}", batches, done)

    def epoch(self, row: _Row) -> None:
        jsonl.append(self.folder / METRICS, row)
        self.tensorboard.epoch(row)
        self.console.epoch(row, self.epochs)

    def log(self, text: str) -> None:
        self.console.line(text)

    def best_effort(self, what: str, draw: Callable[[], None]) -> None:
        """Pictures are a view: what fails in one is told and the run goes on."""
        try:
            draw()
        except Exception as error:
            self.console.line(f"warning: {what} left out: {error}")


class NullLogger:
    """A watcher that tells nothing."""

    def progress(self, epoch: int, batches: int, done: int) -> nullcontext["NullLogger"]:
        return nullcontext(self)

    def update(self, images: int) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def log(self, text: str) -> None: ...
