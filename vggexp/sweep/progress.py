"""What a sweep says while its jobs run: a line for each on a terminal and one for the whole, plain lines elsewhere."""

import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from vggexp.formatting import duration
from vggexp.loggers.console import Console
from vggexp.runs.directory import METRICS

TICK_SECONDS = 1.0
MINUTE = 60.0
TAIL_BYTES = 400


class SweepProgress:
    """work: what each job costs, in any unit; from it the end is expected. As a context it clears its lines."""

    def __init__(self, work: Sequence[float], slots: int, console: Console | None = None):
        self.work = list(work)
        self.console = console or Console(None)
        self.open = dict.fromkeys(range(len(work)), 0.0)  # job -> work that is done of it
        self.done = {"finished": 0, "failed": 0, "stopped": 0}
        self.running: dict[
            int, tuple[int, Path, int, Path]
        ] = {}  # slot -> job, run directory, epochs, log
        self.begin = self.ticked = self.told = monotonic()
        self.bars = _bars(slots) if sys.stderr is not None and sys.stderr.isatty() else []

    def __enter__(self) -> "SweepProgress":
        return self

    def on_start(self) -> None:
        """Once it is known what earlier tries have left to do."""
        if self.done["finished"]:
            self._line(f"before   {self.done['finished']} of {len(self.work)} jobs finished")

    def __exit__(self, *_: object) -> None:
        for bar in reversed(self.bars):
            bar.close()

    def job_started(self, slot: int, job: int, folder: Path, epochs: int, log: Path) -> None:
        self.running[slot] = (job, folder, epochs, log)
        if not self.bars:
            self._line(f"started  {job + 1}/{len(self.work)}  {folder.name}")

    def on_wait(self, job: int, name: str) -> None:
        self._line(f"waits    {job + 1}/{len(self.work)}  {name}  (another process works on it)")

    def slot_freed(self, slot: int) -> None:
        """The slot is free again."""
        del self.running[slot]
        if self.bars:
            self.bars[slot].set_description_str("")

    def job_ended(self, job: int, word: str, text: str) -> None:
        """word: finished, failed or stopped."""
        self.open.pop(job, None)
        self.done[word] += 1
        self._line(f"{word:<8} {job + 1}/{len(self.work)}  {text}")

    def previously_done(self, job: int, ok: bool, text: str) -> None:
        """A job that had ended in an earlier try; text: why it failed."""
        self.work[job] = 0.0
        if ok:
            self.open.pop(job, None)
            self.done["finished"] += 1
        else:
            self.job_ended(job, "failed", f"{text}  (before; sweep.retry_failed=true tries again)")

    def refresh(self) -> None:
        now = monotonic()
        if now - self.ticked < TICK_SECONDS:
            return
        self.ticked = now
        if self.bars:
            for slot, (job, folder, _, log) in self.running.items():
                self.bars[slot].set_description_str(
                    f"  {job + 1}/{len(self.work)} {folder.name}  {_last_line(log)}"
                )
            self.bars[-1].set_description_str(self.summary())
        elif now - self.told > MINUTE:
            self._line(f"running  {self.summary()}")

    def summary(self) -> str:
        """`4 of 12 jobs done, 1 failed, 2 running, about 3.2 min left`."""
        failed = f", {self.done['failed']} failed" if self.done["failed"] else ""
        text = f"{self.done['finished']} of {len(self.work)} jobs done{failed}, {len(self.running)} running"
        share = self.share()
        seconds = (monotonic() - self.begin) * (1 / share - 1) if share else None
        return text if seconds is None else f"{text}, about {duration(seconds)} left"

    def share(self) -> float:
        """Of the work that was missing at the start, what is done; running jobs count by their epochs."""
        total = sum(self.work)
        left = sum(self.work[job] for job in self.open)
        parts = (
            self.work[job] * _epochs(folder) / epochs
            for job, folder, epochs, _ in self.running.values()
        )
        return min(1.0, (total - left + sum(parts)) / total) if total else 0.0

    def _line(self, text: str) -> None:
        self.told = monotonic()
        self.console.line(text)


def _bars(slots: int) -> list[Any]:
    """A bar of text for each slot, and one for the whole at the end."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread would not survive a fork
    places = range(slots + 1)
    return [
        tqdm(total=1, position=place, bar_format="{desc}", dynamic_ncols=True, leave=False)
        for place in places
    ]


def _epochs(folder: Path) -> int:
    path = folder / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
