"""What a run says: lines on the terminal, all of them in run.log too, and a bar inside the epoch."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from vggexp.formatting import duration, printable

MINUTE = 60.0

Batch = tuple[Any, Any]  # images, labels


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """One finished epoch; times stay in seconds, so that the lines of a run compare."""
    number = {key: float("nan") if value is None else value for key, value in metrics.items()}
    parts = [f"epoch {number['epoch']}/{epochs}", f"loss {number['train/loss']:.4f}"]
    parts += [
        f"{part} acc {number[f'{part}/accuracy']:.4f}"
        for part in ("train", "val", "test")
        if f"{part}/accuracy" in number
    ]
    parts += [
        f"lr {number['lr']:.4g}",
        f"{number['time/epoch_seconds']:.1f} s",
        f"{number['images_per_second']:.1f} img/s",
    ]
    return "  ".join(parts)


class Console:
    """Prints lines and appends them to `log_file`. Neither a closed terminal nor a full disk ends the run."""

    def __init__(self, log_file: Path | None, stream: TextIO | None = None, silent: bool = False):
        """silent: of a rank that leaves the telling to rank 0."""
        self.log_file = log_file
        self._silent = silent
        self._stream: TextIO | None = None if silent else sys.stdout if stream is None else stream
        self._log_failed = False
        self._last = monotonic()

    def line(self, text: str) -> None:
        self._last = monotonic()
        text = printable(text, keep="\n\t")
        self._print(text)
        self._log(text)

    def epoch(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """metrics: one object of metrics.jsonl."""
        self.line(epoch_line(metrics, epochs))

    @contextlib.contextmanager
    def progress(self, label: str, batches: int, done: int = 0) -> Iterator["Progress"]:
        """Counts batches from `done`: a bar where stderr is a terminal, otherwise plain lines, one a minute."""
        progress = Progress(
            self, label, batches, done, None if self._silent else _make_bar(label, batches, done)
        )
        try:
            yield progress
        finally:
            progress.close()

    def counted(self, label: str, batches: Iterable[Batch], count: int) -> Iterator[Batch]:
        """The batches of a pass that is not training, with its progress. count: how many there are."""
        with self.progress(label, count) as progress:
            for images, labels in batches:
                yield images, labels
                progress.update(len(labels))

    def due(self, step_seconds: float) -> bool:
        """Whether a minute without a line would pass if the next step were awaited."""
        return monotonic() - self._last + step_seconds > MINUTE

    def _print(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            _write(self._stream, text)
        except (
            OSError,
            ValueError,
        ):  # the reader has gone (`| head`), the disk is full, or the stream is closed
            _silence(self._stream)
            self._stream = None

    def _log(self, text: str) -> None:
        if self.log_file is None:
            return
        try:
            with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(text + "\n")
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                self._print(
                    printable(
                        f"warning: {self.log_file}: {error.strerror} (lines are lost until it can be written)"
                    )
                )


class Progress:
    """The batches of one pass; made by Console.progress."""

    def __init__(self, console: Console, label: str, batches: int, done: int, bar: Any):
        self._console = console
        self._label = label
        self._batches = batches
        self._bar = bar
        self._done = done
        self._first = done
        self._images = 0
        self._start = monotonic()

    def update(self, images: int) -> None:
        """Counts one batch of so many images."""
        self._done += 1
        self._images += images
        seconds = monotonic() - self._start
        step = seconds / (self._done - self._first)
        left = duration((self._batches - self._done) * step)
        text = f"{self._images / max(seconds, 1e-9):.1f} img/s  {left} left"
        if self._bar is not None:
            self._advance(text)
        elif self._console.due(step):
            self._console.line(f"{self._label}  batch {self._done}/{self._batches}  {text}")

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.close()

    def _advance(self, text: str) -> None:
        try:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        except (OSError, ValueError):  # the terminal was closed
            self._bar.disable = True
            self._bar = None


def _make_bar(label: str, batches: int, done: int) -> Any:
    """A tqdm bar on stderr, None where that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    form = "{desc}  {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} batches{postfix}"
    return tqdm(
        total=batches, initial=done, desc=label, leave=False, dynamic_ncols=True, bar_format=form
    )


def _write(stream: TextIO, text: str) -> None:
    """One line at once, around a bar if there is one; what the terminal's encoding lacks is escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    tqdm = sys.modules.get("tqdm")
    with tqdm.tqdm.external_write_mode(stream) if tqdm else contextlib.nullcontext():
        stream.write(text + "\n")
        stream.flush()


def _silence(stream: TextIO) -> None:
    """Points the broken stream at the null device: flushing its rest at exit would turn the exit code into 120."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
