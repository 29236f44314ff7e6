"""The jobs of a sweep in processes of their own, several at a time, taken from one queue.

This process imports torch and reads the data once; each job is a fork of it, so that it starts at once, is what it
would be alone, and gives everything back at its end, however that comes.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.derived import training_macs
from vggexp.config.schema import Config
from vggexp.errors import InUseError, ResourceError, StoppedError, VggexpError
from vggexp.formatting import duration
from vggexp.runs import directory, records
from vggexp.sweep.progress import SweepProgress
from vggexp.system import locks, processes
from vggexp.system.cpu import default_threads
from vggexp.system.signals import StopFlag, handle_stop_signals

POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 1.0  # between two looks at runs that other processes work on
CORES_PER_JOB = 4  # jobs=auto: with more threads a job gains little


class PoolJob(NamedTuple):
    """config: or the error in its place, of a job that only a search could make. folder: of its run."""

    number: int
    config: Config | VggexpError
    folder: Path


def make_job(number: int, config: Config | VggexpError) -> PoolJob:
    """Its folder is found once: with resume=never it is another one as soon as it is there."""
    return PoolJob(
        number,
        config,
        records.run_dir(config) if isinstance(config, Config) else Path(f"job-{number + 1}"),
    )


def most_ranks(jobs: Sequence[PoolJob]) -> int:
    return max(
        job.config.device.processes or 1 if isinstance(job.config, Config) else 1 for job in jobs
    )


class JobResult(NamedTuple):
    ok: bool
    objective: float | None
    error: str


@dataclass
class WorkerSlot:
    """Room for one job at a time. variables: what makes it keep to its share of the machine."""

    number: int
    variables: dict[str, str] = field(default_factory=dict)
    job: PoolJob | None = None
    pid: int = 0
    since: float = 0.0
    log_bytes: int = 0  # of earlier tries


def make_slots(
    wanted: Any, per_gpu: int, gpus: Sequence[Any] | None, device: str, ranks: int = 1
) -> list[WorkerSlot]:
    """wanted: auto or a number of jobs. gpus: None for all that are there. Threads are divided among the slots.

    ranks: the most that a job has, each of which needs a GPU.
    """
    single = [str(gpu) for gpu in gpus] if gpus else _visible_gpus() if device == "cuda" else []
    names = [
        ",".join(single[first : first + ranks])
        for first in range(0, len(single) - ranks + 1, ranks)
    ]
    cores = default_threads()
    count = wanted if wanted != "auto" else len(names) * per_gpu or max(1, cores // CORES_PER_JOB)
    shared = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    visible = [
        {"CUDA_VISIBLE_DEVICES": names[number % len(names)]} if names else {}
        for number in range(count)
    ]
    return [WorkerSlot(number, shared | own) for number, own in enumerate(visible)]


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them, else by number; asked in a way after which a process may still fork."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    )


def run_pool(
    jobs: Sequence[PoolJob],
    slots: Sequence[WorkerSlot],
    perform: Callable[[PoolJob], int],
    folder: Path,
) -> list[JobResult]:
    """Runs what is missing; returns how each job stands, in their order.

    perform: called in a job's own process; returns or exits with its code. folder: of the sweep, for the jobs' output.
    Raises StoppedError once the running jobs have saved, KeyboardInterrupt after a second Ctrl-C.
    """
    logs = folder / "jobs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{logs}: cannot be made: {error.strerror} (choose another run.root)"
        ) from error
    with (
        handle_stop_signals() as stop,
        SweepProgress([_work(job) for job in jobs], len(slots)) as board,
    ):
        pool = Pool(jobs, slots, perform, logs, board)
        try:
            pool.run_all(stop)
        except BaseException:  # a second Ctrl-C above all: no job outlives its sweep
            pool.pass_on(2)
            while pool.busy():
                pool.reap()
            raise
    if stop.signal is not None:
        done = sum(end is not None and end.ok for end in pool.results)
        raise StoppedError(
            stop.signal, f"with {done} of {len(jobs)} jobs done", "run the same command to continue"
        )
    return [
        end or JobResult(False, None, "not started: sweep.on_error=stop") for end in pool.results
    ]


class Pool:
    def __init__(
        self,
        jobs: Sequence[PoolJob],
        slots: Sequence[WorkerSlot],
        perform: Callable[[PoolJob], int],
        logs: Path,
        board: SweepProgress,
    ):
        self.waiting = deque(jobs)
        self.running_elsewhere = list[PoolJob]()
        self.slots = slots
        self.perform = perform
        self.logs = logs
        self.board = board
        self.results: list[JobResult | None] = [None] * len(jobs)
        self.preloaded = self.stop_starting = False
        self.last_poll = 0.0

    def busy(self) -> list[WorkerSlot]:
        return [slot for slot in self.slots if slot.job is not None]

    def run_all(self, stop: StopFlag) -> None:
        """Until every job has ended, or those that were running when a stop was asked for."""
        passed_on = False
        self.skip_done()
        while self.busy() or (
            not (self.stop_starting or stop.signal) and (self.waiting or self.running_elsewhere)
        ):
            if stop.signal and not passed_on:
                self.pass_on(stop.signal)
                passed_on = True
            self.reap()
            if not (self.stop_starting or stop.signal):
                self.start_jobs(stop)
            self.board.refresh()
            time.sleep(POLL_SECONDS)

    def pass_on(self, number: int) -> None:
        for slot in self.busy():
            os.kill(slot.pid, number)

    def skip_done(self) -> None:
        """Takes those from the queue that need nothing more."""
        self.waiting = deque(job for job in self.waiting if self.needs_run(job))
        self.board.on_start()

    def start_jobs(self, stop: StopFlag) -> None:
        """Starts jobs while there is room; then gets ready what the later ones would each do again."""
        if self.running_elsewhere and time.monotonic() - self.last_poll > ELSEWHERE_SECONDS:
            self.last_poll = time.monotonic()
            self.waiting.extend(job for job in list(self.running_elsewhere) if self.needs_run(job))
            self.running_elsewhere = [
                job
                for job in self.running_elsewhere
                if self.results[job.number] is None and job not in self.waiting
            ]
        for slot in self.slots:
            if slot.job is None and self.waiting and not (stop.signal or self.stop_starting):
                self.start(self.waiting.popleft(), slot)
        if self.waiting and not self.preloaded:
            self.preloaded = True
            preload([job.config for job in self.waiting])

    def needs_run(self, job: PoolJob) -> bool:
        """Whether the job is to be started: it has not ended already, and no other process works on it."""
        try:
            standing = _job_status(job)
        except VggexpError as error:
            self.end(job, JobResult(False, None, str(error)))
            return False
        if standing in ("finished", "failed"):
            self.results[job.number] = end = _recorded_result(job)
            self.board.previously_done(job.number, end.ok, f"{job.folder.name}  {end.error}")
        elif standing == "running" and job not in self.running_elsewhere:
            self.board.on_wait(job.number, job.folder.name)
            self.running_elsewhere.append(job)
        return standing == "missing"

    def start(self, job: PoolJob, slot: WorkerSlot) -> None:
        assert isinstance(job.config, Config)
        log = self.log(job)
        slot.log_bytes = log.stat().st_size if log.exists() else 0
        slot.since = time.monotonic()
        slot.pid = processes.fork_call(lambda: self.perform(job), log, slot.variables)
        slot.job = job
        self.board.job_started(slot.number, job.number, job.folder, job.config.train.epochs, log)

    def log(self, job: PoolJob) -> Path:
        return self.logs / f"{job.folder.name}.log"

    def reap(self) -> None:
        """Takes note of the jobs that have ended."""
        for slot in self.busy():
            code = processes.poll(slot.pid)
            if code is None or slot.job is None:
                continue
            job = slot.job
            slot.job = None
            self.board.slot_freed(slot.number)
            try:
                if code == InUseError.exit_code:  # another process was faster
                    raise InUseError
                end = _result_of(job, code, last_error_line(self.log(job), slot.log_bytes))
            except InUseError:
                self.board.on_wait(job.number, job.folder.name)
                self.running_elsewhere.append(job)
                continue
            except VggexpError as error:
                end = JobResult(False, None, str(error))
            self.end(job, end, time.monotonic() - slot.since, stopped=code > 128)

    def end(
        self, job: PoolJob, end: JobResult, seconds: float | None = None, stopped: bool = False
    ) -> None:
        self.results[job.number] = end
        if isinstance(job.config, Config) and not (end.ok or stopped):
            self.stop_starting = self.stop_starting or job.config.sweep.on_error == "stop"
        what = f"{end.objective:.4f}" if end.objective is not None else end.error
        parts = [job.folder.name, what, *([] if seconds is None else [duration(seconds)])]
        parts += [f"({self.log(job)})"] * (not (end.ok or stopped) and seconds is not None)
        self.board.job_ended(
            job.number,
            "finished" if end.ok else "stopped" if stopped else "failed",
            "  ".join(parts),
        )


def preload(configs: Sequence[Config | VggexpError]) -> None:
    """Imports and reads, on one thread, what forks of this process then have; what fails here they will tell."""
    import torch

    torch.set_num_threads(1)
    import torch.distributed.tensor  # which torch loads where a graph is drawn: a second and more
    import torch.utils.tensorboard._pytorch_graph

    import vggexp.loggers.images  # noqa: F401
    from vggexp.data import datasets

    for config in configs:
        if isinstance(config, Config) and type(config.data).__name__ == "Data":
            datasets.preload(config.data.name, Path(config.data.root) if config.data.root else None)


def _work(job: PoolJob) -> float:
    return float(training_macs(job.config)) if isinstance(job.config, Config) else 0.0


def _job_status(job: PoolJob) -> str:
    """finished, failed (and not to be tried again), running elsewhere, or missing. Raises VggexpError."""
    if not isinstance(job.config, Config):
        raise job.config
    if job.config.resume == "never":
        return "missing"
    if records.finished_result(job.config) is not None:
        return "finished"
    if locks.is_locked(job.folder):
        return "running"
    failed = directory.read_result(job.folder).get("state") == "failed"
    return "failed" if failed and not job.config.sweep.retry_failed else "missing"


def _recorded_result(job: PoolJob) -> JobResult:
    """As the run directory has it."""
    assert isinstance(job.config, Config)
    result = directory.read_result(job.folder)
    objective = result.get(job.config.sweep.objective)
    return JobResult(result.get("state") == "finished", objective, result.get("error") or "")


def _result_of(job: PoolJob, code: int, words: str) -> JobResult:
    """words: the last of the job's output. Raises InUseError where another process has the run by now."""
    if code < 0:
        error = f"killed by {processes.signal_name(code)}"
        directory.mark_interrupted(job.folder, error, 128 - code)
        return JobResult(False, None, error)
    end = _recorded_result(job)
    return end if code == 0 else JobResult(False, None, end.error or words or f"exit {code}")


def last_error_line(log: Path, start: int = 0) -> str:
    """The error line that a job ended with, else the last line it printed. start: bytes that earlier tries wrote."""
    text = log.read_bytes()[start:].decode("utf-8", "replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("vggexp: ")]
    return (told or lines or [""])[-1].removeprefix("vggexp: ").removeprefix("error: ")
