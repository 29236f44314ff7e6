"""Prints the progress of a sweep: on a terminal a bar for each running job and one for the sweep.

Without a terminal it prints plain lines: one when a job starts or ends, and one each minute.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from vggexp.formatting import duration, plural, printable
from vggexp.loggers.console import Console, load_tqdm
from vggexp.runs.directory import METRICS
from vggexp.runs.schema import MAX_METRICS_BYTES
from vggexp.system.files import read_file, read_tail

REFRESH_SECONDS = 1.0  # between two updates of the bars
LINE_SECONDS = 60.0  # the longest time without a line, if there are no bars
TAIL_BYTES = 400  # of a log, read for its last line


@dataclass(frozen=True)
class RunningJob:
    index: int
    folder: Path  # the run directory
    epochs: int
    log: Path
    trained: int = 0  # epochs that earlier attempts finished
    epochs_share: float = 1.0  # of the job's work, 0..1; the rest is the test


class SweepProgress:
    """Counts the jobs of a sweep and estimates its end. As a context manager it clears its bars."""

    def __init__(
        self,
        work: Sequence[float],
        slots: int,
        console: Console | None = None,
        clock: Callable[[], float] = monotonic,
    ):
        """Starts the clock of the estimate.

        Args:
            work: what is missing of each job at the start, in any unit.
            slots: jobs at a time.
            console: receives the lines; None prints them on stdout.
            clock: returns seconds.
        """
        self.work = list(work)
        self.console = console or Console(None)
        self.remaining = set(range(len(work)))  # jobs that have not ended
        self.ended = {
            "finished": 0,
            "paused": 0,
            "failed": 0,
            "stopped": 0,
        }
        self.running: dict[int, RunningJob] = {}  # by slot
        self.clock = clock
        self.started_at = clock()
        self.known_share = 0.0  # the largest share so far
        self.expected_end = 0.0  # on the clock; 0.0: nothing is known
        self.refreshed_at = self.started_at
        self.printed_at = self.started_at
        self.bars: list[Any] = []  # none without a terminal
        if sys.stderr is not None and sys.stderr.isatty():
            self.bars = _make_bars(slots)

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in reversed(self.bars):
            bar.close()

    def job_started(self, slot: int, job: RunningJob) -> None:
        self.running[slot] = job
        if not self.bars:
            position = self._position(job.index)
            self._line(f"started  {position}  {job.folder.name}")

    def on_wait(self, index: int, name: str) -> None:
        position = self._position(index)
        self._line(f"waits    {position}  {name}  (another process works on it)")

    def slot_freed(self, slot: int) -> None:
        del self.running[slot]
        if self.bars:
            self.bars[slot].set_description_str("")

    def job_ended(self, index: int, state: str, text: str) -> None:
        """Prints the end of a job; `state` is finished, paused, failed or stopped."""
        self.remaining.discard(index)
        self.ended[state] += 1
        position = self._position(index)
        self._line(f"{state:<8} {position}  {text}")

    def previously_done(self, index: int, ok: bool, text: str) -> None:
        """Counts a job that had ended in an earlier attempt; `text` names the run and its error."""
        self.work[index] = 0.0
        if ok:
            self.remaining.discard(index)
            self.ended["finished"] += 1
        else:
            text = f"{text}  (before; sweep.retry_failed=true tries again)"
            self.job_ended(index, "failed", text)

    def refresh(self) -> None:
        """Updates the bars or prints a line, if one is due."""
        now = self.clock()
        if now - self.refreshed_at < REFRESH_SECONDS:
            return
        self.refreshed_at = now
        if self.bars:
            for slot, job in self.running.items():
                position = self._position(job.index)
                lines = read_tail(job.log, TAIL_BYTES)
                line = printable(lines[-1]) if lines else ""
                text = f"  {position} {job.folder.name}  {line}"
                self.bars[slot].set_description_str(text)
            self.bars[-1].set_description_str(self.summary())
        elif now - self.printed_at > LINE_SECONDS:
            self._line(f"running  {self.summary()}")

    def summary(self) -> str:
        """Returns `4 of 12 jobs done, 1 failed, 2 running, about 3.2 min left`.

        The time that is left runs down between two steps of `share`. When it is over, the text is
        `longer than expected`.
        """
        finished = self.ended["finished"] + self.ended["paused"]
        failed = self.ended["failed"]
        parts = [f"{finished} of {plural(len(self.work), 'job')} done"]
        if failed:
            parts.append(f"{failed} failed")
        parts.append(f"{len(self.running)} running")
        now = self.clock()
        share = self.share()
        if share > self.known_share:
            self.known_share = share
            self.expected_end = self.started_at + (now - self.started_at) / share
        left = self.expected_end - now
        if self.expected_end:
            parts.append(f"about {duration(left)} left" if left > 0 else "longer than expected")
        return ", ".join(parts)

    def share(self) -> float:
        """Returns the done share, 0..1, of the work that was missing at the start.

        Running jobs count by their finished epochs, without their test.
        """
        total = sum(self.work)
        if not total:
            return 0.0
        done = total
        for index in self.remaining:
            done -= self.work[index]
        for job in self.running.values():
            missing = job.epochs - job.trained
            if missing:
                epochs = max(0, finished_epochs(job.folder) - job.trained)
                done += self.work[job.index] * job.epochs_share * epochs / missing
        return min(1.0, done / total)

    def _position(self, index: int) -> str:
        return f"job {index + 1}/{len(self.work)}"

    def _line(self, text: str) -> None:
        self.printed_at = self.clock()
        self.console.line(text)


def _make_bars(slots: int) -> list[Any]:
    """Returns a line of text for each slot, and one for the sweep below them."""
    tqdm = load_tqdm()
    tqdm.monitor_interval = 0  # tqdm's thread would not survive a fork
    bars = []
    for position in range(slots + 1):
        bar = tqdm(total=1, position=position, bar_format="{desc}", dynamic_ncols=True, leave=False)
        bars.append(bar)
    return bars


def finished_epochs(folder: Path) -> int:
    """Returns the epochs that a run has finished; 0 for a folder that cannot be read."""
    try:
        return read_file(folder / METRICS, MAX_METRICS_BYTES).count(b"\n")
    except OSError:
        return 0
