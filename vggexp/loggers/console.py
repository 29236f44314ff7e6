"""Prints what a run reports: lines on the terminal and in run.log, and a progress bar.

The lines go through the standard library's logger `vggexp`, at level INFO. Importing this module
configures nothing. The first `Console` gives the logger its level and two handlers: one for stdout
and one for run.log. A program that uses the package redirects or silences a run in the usual ways,
before the run starts:

- `logging.getLogger("vggexp").addHandler(...)` adds another output.
- `logging.getLogger("vggexp").addFilter(...)` drops lines from all outputs.
- `logging.getLogger("vggexp").setLevel(logging.WARNING)` silences the run, run.log included.
- `contextlib.redirect_stdout(...)` redirects what is printed; run.log stays complete.
"""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from vggexp.errors import ResourceError, WaitStoppedError
from vggexp.formatting import duration, format_metric, printable
from vggexp.system.files import open_no_follow
from vggexp.system.signals import interruptible

LOGGER = logging.getLogger("vggexp")
LOSS_SECONDS = 1.0  # between two readings of the loss for a bar
MINUTE = 60.0  # seconds; the longest time without a line if there is no progress bar
# Errors of writing if the reader is gone (`| head`), the disk is full, the stream is closed, or a
# stop signal has come and nothing is read.
BROKEN_STREAM = (OSError, ValueError, WaitStoppedError)

_BAR_LOCK = threading.RLock()  # held while a bar or a line is written

Batch = tuple[Any, Any]  # images, labels


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """Formats one finished epoch. Times stay in seconds, so that the lines of a run compare.

    Args:
        metrics: one object of metrics.jsonl. A null is a number that was not finite.
        epochs: number of epochs of the run.
    """
    numbers = dict(metrics)
    for key, number in metrics.items():
        if number is None:
            numbers[key] = float("nan")
    parts = [
        f"epoch {numbers['epoch']}/{epochs}",
        f"loss {format_metric(numbers['train/loss'])}",
    ]
    for part in ("train", "val", "test"):
        key = f"{part}/accuracy"
        if key in numbers:
            parts.append(f"{part} acc {numbers[key]:.4f}")
    parts += [
        f"lr {numbers['lr']:.4g}",
        f"{numbers['time/epoch_seconds']:.1f} s",
        f"{numbers['images_per_second']:.1f} img/s",
    ]
    return "  ".join(parts)


def is_from_rank_zero(record: logging.LogRecord) -> bool:
    """Filter of the logger: silences the ranks above 0."""
    return getattr(record, "rank", 0) == 0


class StreamHandler(logging.Handler):
    """Writes lines to a stream.

    Neither a closed terminal nor a full disk ends the run. After a stop signal, a reader that does
    not read does not hold up the run.
    """

    def __init__(self, stream: TextIO | None):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        self.write_line(self.format(record))

    def write_line(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            with interruptible("while a line was printed"):
                _write(self.stream, text)
        except BROKEN_STREAM:
            redirect_to_null(self.stream)
            self.stream = None
        except KeyboardInterrupt:  # the rest of the line would hold up the exit
            redirect_to_null(self.stream)
            raise


class RunLogHandler(logging.Handler):
    """Appends lines to run.log. The file is opened for each line, so a full disk can recover.

    Args:
        output: gets one warning if the file cannot be written.
    """

    def __init__(self, path: Path, output: StreamHandler):
        super().__init__()
        self.path = path
        self._output = output
        self._has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with open(
                self.path,
                "a",
                encoding="utf-8",
                errors="backslashreplace",
                opener=open_no_follow,
            ) as log:
                log.write(self.format(record) + "\n")
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warning = f"warning: {self.path}: {error.strerror}"
                self._output.write_line(
                    printable(f"{warning} (lines are lost until it can be written)")
                )


def print_text(text: str) -> None:
    """Prints the result of a command on stdout, past the logger.

    Raises:
        ResourceError: the result is lost, on a full disk for example.
    """
    with _stdout_errors():
        if sys.stdout is not None:
            _write(sys.stdout, printable(text, keep="\n\t"))


def flush_stdout() -> None:
    """Flushes what was printed. Raises ResourceError as `print_text` does."""
    with _stdout_errors():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    """Raises ResourceError for lost output. A reader that has exited (`| head`) is no error."""
    try:
        yield
    except (BrokenPipeError, ValueError):  # ValueError: stdout is closed
        redirect_to_null(sys.stdout)
    except OSError as error:
        redirect_to_null(sys.stdout)
        raise ResourceError(f"stdout: cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class LaterEpochs:
    """The epochs of a run after the current one."""

    epochs: int
    epoch_seconds: float | None  # of the last epoch, with its evaluation; None: none has ended
    rest_seconds: float  # pause before each of them

    def seconds(self, training_seconds: float) -> float:
        """Returns the time of these epochs.

        Args:
            training_seconds: time of an epoch without its evaluation, if none has ended.
        """
        return self.epochs * ((self.epoch_seconds or training_seconds) + self.rest_seconds)


NO_EPOCHS = LaterEpochs(0, None, 0)


class Console:
    """Prints lines through the logger `vggexp`, and shows the progress inside an epoch.

    The console that prints owns the logger's two handlers. Handlers of other consoles are removed
    then; handlers of the program that uses the package stay.

    Args:
        log_file: run.log; None: no file, or a file that is set later.
        stream: default is stdout.
        rank: ranks above 0 print nothing, and show no bar.
    """

    def __init__(self, log_file: Path | None, stream: TextIO | None = None, rank: int = 0):
        self._rank = rank
        self._last_line = monotonic()
        self._output = StreamHandler(sys.stdout if stream is None else stream)
        self._run_log: RunLogHandler | None = None
        self.log_file = log_file
        if LOGGER.level == logging.NOTSET:
            LOGGER.setLevel(logging.INFO)
        LOGGER.disabled = False  # Hydra's job_logging=disabled disables all loggers that exist
        LOGGER.propagate = False  # otherwise a handler of the root logger would print lines again
        LOGGER.addFilter(is_from_rank_zero)
        self._attach_handlers()

    @property
    def log_file(self) -> Path | None:
        """Path of run.log, which may be set when the run directory is known."""
        return None if self._run_log is None else self._run_log.path

    @log_file.setter
    def log_file(self, path: Path | None) -> None:
        self._run_log = None if path is None else RunLogHandler(path, self._output)

    def line(self, text: str) -> None:
        """Prints a line. Control characters are escaped, so that it stays one line."""
        self._last_line = monotonic()
        self._attach_handlers()
        record = LOGGER.makeRecord(
            LOGGER.name,
            logging.INFO,
            fn=__file__,
            lno=0,
            msg=printable(text),
            args=(),
            exc_info=None,
            extra={"rank": self._rank},
        )
        # Not LOGGER.info, which logging.disable would silence. runner.launch calls that function
        # while it starts ranks, and other libraries may.
        if LOGGER.level <= logging.INFO:
            LOGGER.handle(record)

    def epoch(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Prints the line of a finished epoch."""
        self.line(epoch_line(metrics, epochs))

    @contextlib.contextmanager
    def progress(
        self, label: str, batches: int, done: int = 0, later: LaterEpochs = NO_EPOCHS
    ) -> Iterator["Progress"]:
        """Counts batches in the block.

        If stderr is a terminal it shows a bar, otherwise a line each minute.

        Args:
            batches: number of batches of the pass.
            done: number of batches at the beginning of the block.
            later: the epochs after this one, which the time left includes.
        """
        bar = None if self._rank else _make_bar(label, batches, done)
        progress = Progress(self, label, batches, done, bar, later)
        try:
            yield progress
        finally:
            progress.close()

    def track(self, label: str, batches: Iterable[Batch], count: int) -> Iterator[Batch]:
        """Yields the batches of an evaluation, and counts them.

        Args:
            count: number of batches.
        """
        with self.progress(label, count) as progress:
            for images, labels in batches:
                yield images, labels
                progress.update(len(labels))

    def is_line_due(self, step_seconds: float) -> bool:
        """Returns whether the next step would end more than a minute after the last line."""
        return monotonic() - self._last_line + step_seconds > MINUTE

    def _attach_handlers(self) -> None:
        handlers: list[logging.Handler] = [self._output]
        if self._run_log is not None:
            handlers.append(self._run_log)
        for handler in list(LOGGER.handlers):
            is_own = isinstance(handler, StreamHandler | RunLogHandler)
            if is_own and handler not in handlers:
                LOGGER.removeHandler(handler)
        for handler in handlers:
            LOGGER.addHandler(handler)


class Progress:
    """Counts the batches of one pass. Console.progress creates it."""

    def __init__(
        self,
        console: Console,
        label: str,
        batches: int,
        done: int,
        bar: Any,
        later: LaterEpochs,
    ):
        self._console = console
        self._label = label
        self._batches = batches
        self._bar = bar
        self._done = done
        self._first = done
        self._later = later
        self._images = 0
        self._start = monotonic()
        self._loss = ""  # as shown
        self._loss_read = -LOSS_SECONDS  # time of the last reading

    def update(self, images: int, loss: Callable[[], float] | None = None) -> None:
        """Counts one batch.

        Args:
            images: number of images in the batch.
            loss: returns the mean loss of the epoch so far. Called only for a line that is due, and
                each second for a bar, because the call waits for the device.
        """
        self._done += 1
        self._images += images
        elapsed = monotonic() - self._start
        step_seconds = elapsed / (self._done - self._first)
        is_line = self._bar is None and self._console.is_line_due(step_seconds)
        if self._bar is None and not is_line:
            return
        if loss is not None and (is_line or elapsed - self._loss_read >= LOSS_SECONDS):
            self._loss = f"loss {format_metric(loss())}  "
            self._loss_read = elapsed
        remaining = (self._batches - self._done) * step_seconds
        remaining += self._later.seconds(self._batches * step_seconds)
        rate = self._images / max(elapsed, 1e-9)
        text = f"{self._loss}{rate:.1f} img/s  {duration(remaining)} left"
        if is_line:
            self._console.line(f"{self._label}  batch {self._done}/{self._batches}  {text}")
        else:
            self._advance_bar(text)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            with contextlib.suppress(*BROKEN_STREAM), interruptible("while a bar was removed"):
                self._bar.close()

    def _advance_bar(self, text: str) -> None:
        try:
            with interruptible("while a bar was shown"):
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update()
        except BROKEN_STREAM:
            self._bar.disable = True
            self._bar = None


def _make_bar(label: str, batches: int, done: int) -> Any:
    """Returns a tqdm bar on stderr; None if stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    return load_tqdm()(
        total=batches,
        initial=done,
        desc=printable(label),
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc}  {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} batches{postfix}",
    )


def load_tqdm() -> Any:
    """Returns tqdm's class with a lock of threads only: each process has bars of its own.

    tqdm's default is a semaphore that forked processes share. A killed process would keep the
    semaphore for ever, and joblib warns about each semaphore that a job leaves behind.
    """
    from tqdm import tqdm

    tqdm.set_lock(_BAR_LOCK)
    return tqdm


def _write(stream: TextIO, text: str) -> None:
    """Writes one line at once, without damage to a bar.

    Characters that the terminal's encoding lacks are escaped.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    bar_is_hidden: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if "tqdm" in sys.modules:
        bar_is_hidden = load_tqdm().external_write_mode(stream)
    with bar_is_hidden:
        stream.write(text + "\n")
        stream.flush()


def redirect_to_null(stream: TextIO) -> None:
    """Points a broken stream at the null device.

    Otherwise Python would flush the rest of the stream at exit, fail, and change the exit code to
    120.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
