"""Runs the jobs of a sweep in processes of their own, several at a time, from one queue.

This process imports torch and reads the data once. Each job is a fork of it: a job starts
immediately, computes what it would compute alone, and frees its memory however it ends.
"""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.derived import command_epochs, ends_with_test, layers
from vggexp.config.schema import Config, ImageFiles, Synthetic, TorchvisionArrays
from vggexp.errors import InUseError, VggexpError, WaitStoppedError
from vggexp.formatting import duration, format_metric, plural
from vggexp.models.shapes import macs
from vggexp.runs import directory, forecast, records
from vggexp.runs.data_source import torchvision_source
from vggexp.sweep.parallel import gpu_names, jobs_at_a_time
from vggexp.sweep.progress import RunningJob, SweepProgress, finished_epochs
from vggexp.system import locks, processes
from vggexp.system.cpu import default_threads
from vggexp.system.files import (
    CHOOSE_ROOT,
    make_inner_dir,
    os_error_as_resource_error,
    read_tail,
    refuse_link,
)
from vggexp.system.signals import STOPPING_JOBS, StopFlag, handle_stop_signals, interruptible

POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 1.0  # between two checks of runs that other processes work on
NAMES_CONTINUE = "run.name=NAME of its folder, in place of resume=never, continues a run"
MAX_LOG_BYTES = 1 << 20  # of the end of a job's log that is searched for its error


@dataclass(frozen=True)
class PoolJob:
    """One job. A search may propose values that do not fit: `config` is then None."""

    index: int
    folder: Path  # the run directory
    config: Config | None
    error: str = ""  # the reason, if `config` is None
    trained: int = 0  # epochs that earlier attempts finished
    work: float = 0.0  # multiply-adds that are missing; 0: unknown
    epochs_share: float = 1.0  # of the work; the rest is the test


def make_job(index: int, config: Config) -> PoolJob:
    """Returns a job with the work that its run still lacks.

    Finds the run directory once: with resume=never the next search finds a new directory.
    """
    job = PoolJob(index, records.run_dir(config), config)
    counts = forecast.count_run_images(config)
    if counts is None:
        return job
    epochs = command_epochs(config)
    trained = min(epochs, finished_epochs(job.folder))
    training = (epochs - trained) * forecast.epoch_passes(config, counts)
    passes = training + ends_with_test(config) * forecast.passes_per_test(config, counts)
    work = float(passes * macs(layers(config)))
    share = training / passes if passes else 1.0
    return replace(job, trained=trained, work=work, epochs_share=share)


def invalid_job(index: int, error: str) -> PoolJob:
    return PoolJob(index, Path(f"job-{index + 1}"), None, error)


def most_ranks(jobs: Sequence[PoolJob]) -> int:
    """Returns the largest number of processes that train one job."""
    most = 1
    for job in jobs:
        if job.config is not None:
            most = max(most, job.config.device.processes or 1)
    return most


class JobResult(NamedTuple):
    ok: bool
    objective: float | None
    error: str
    paused: bool = False  # by run.until


@dataclass
class WorkerSlot:
    """Runs one job at a time."""

    index: int
    variables: dict[str, str] = field(default_factory=dict)  # limit a job to its share
    job: PoolJob | None = None
    pid: int = 0
    started_at: float = 0.0
    log_start: int = 0  # bytes of the job's log that earlier attempts wrote


def make_slots(
    jobs: Any,
    per_gpu: int,
    gpus: Sequence[Any] | None,
    device: str,
    ranks: int = 1,
) -> list[WorkerSlot]:
    """Divides the machine's threads and GPUs among slots.

    Args:
        jobs: the number of jobs at a time, or "auto".
        per_gpu: jobs that share a GPU.
        gpus: the GPUs to use; None for all visible GPUs.
        device: the device of the jobs.
        ranks: processes of one job; each of them needs a GPU.
    """
    names = gpu_names(gpus, device)
    groups = []  # the GPUs of one job, as CUDA_VISIBLE_DEVICES names them
    for first in range(0, len(names) - ranks + 1, ranks):
        groups.append(",".join(names[first : first + ranks]))
    cores = default_threads()
    count = jobs_at_a_time(jobs, per_gpu, len(groups))
    threads = max(1, cores // count)
    slots = []
    for index in range(count):
        slot = WorkerSlot(index, {"OMP_NUM_THREADS": str(threads)})
        if groups:
            slot.variables["CUDA_VISIBLE_DEVICES"] = groups[index % len(groups)]
        slots.append(slot)
    return slots


def run_pool(
    jobs: Sequence[PoolJob],
    slots: Sequence[WorkerSlot],
    perform: Callable[[PoolJob], int],
    folder: Path,
) -> list[JobResult]:
    """Runs the jobs that are not done.

    Args:
        jobs: all jobs of the sweep.
        slots: the result of `make_slots`.
        perform: trains a job in the job's own process; returns or exits with an exit code.
        folder: the folder of the sweep, in which `jobs/` holds the output of each job.

    Returns:
        The result of each job, in the order of the jobs.

    Raises:
        StoppedError: a signal came, and the running jobs have saved.
        KeyboardInterrupt: a second Ctrl-C came.
    """
    logs = folder / "jobs"
    with os_error_as_resource_error(logs, "made", CHOOSE_ROOT):
        make_inner_dir(logs)
    work = [job.work for job in jobs]
    with handle_stop_signals(STOPPING_JOBS) as stop, SweepProgress(work, len(slots)) as progress:
        if any(job.config is not None and job.config.resume == "never" for job in jobs):
            stop.resume_hint = NAMES_CONTINUE
        pool = Pool(jobs, slots, perform, logs, progress)
        try:
            pool.run_all(stop)
        except BaseException:  # mostly a second Ctrl-C: no job outlives its sweep
            pool.send_signal(signal.SIGINT)
            while pool.busy():
                pool.reap()
                time.sleep(POLL_SECONDS)
            raise
    done = sum(result is not None and result.ok for result in pool.results)
    stop.check(f"with {done} of {plural(len(jobs), 'job')} done")
    not_started = JobResult(False, None, "")  # sweep.on_error=stop
    return [result or not_started for result in pool.results]


class Pool:
    """The queue of a sweep, and the processes that take jobs from the queue."""

    def __init__(
        self,
        jobs: Sequence[PoolJob],
        slots: Sequence[WorkerSlot],
        perform: Callable[[PoolJob], int],
        logs: Path,
        progress: SweepProgress,
    ):
        """See `run_pool`; `logs` is the folder of the jobs' output."""
        self.waiting = deque(jobs)
        self.running_elsewhere: list[PoolJob] = []  # in other processes
        self.slots = slots
        self.perform = perform
        self.logs = logs
        self.progress = progress
        self.results: list[JobResult | None] = [None] * len(jobs)
        self.preloaded = False
        self.stop_starting = False  # a job failed, and sweep.on_error=stop
        self.last_poll = 0.0  # when the runs of other processes were checked

    def busy(self) -> list[WorkerSlot]:
        return [slot for slot in self.slots if slot.job is not None]

    def run_all(self, stop: StopFlag) -> None:
        """Runs all jobs; after a stop signal it only waits for the running jobs."""
        signal_sent = False
        self.skip_done()
        while self.busy() or (self._may_start(stop) and (self.waiting or self.running_elsewhere)):
            if stop.signal and not signal_sent:
                self.send_signal(stop.signal)
                signal_sent = True
            self.reap()
            if self._may_start(stop):
                self.start_jobs(stop)
            self.progress.refresh()
            time.sleep(POLL_SECONDS)

    def _may_start(self, stop: StopFlag) -> bool:
        return not (self.stop_starting or stop.signal)

    def send_signal(self, signum: int) -> None:
        for slot in self.busy():
            os.kill(slot.pid, signum)

    def skip_done(self) -> None:
        """Removes the jobs from the queue that need no run."""
        self.waiting = deque(job for job in self.waiting if self.needs_run(job))

    def start_jobs(self, stop: StopFlag) -> None:
        """Starts jobs in the free slots; then preloads for the jobs that still wait."""
        if self.running_elsewhere and time.monotonic() - self.last_poll > ELSEWHERE_SECONDS:
            self._poll_elsewhere()
        for slot in self.slots:
            if slot.job is None and self.waiting and self._may_start(stop):
                self.start(self.waiting.popleft(), slot)
        if self.waiting and not self.preloaded:
            self.preloaded = True
            with contextlib.suppress(WaitStoppedError), interruptible("while torch was imported"):
                preload(self.waiting)

    def _poll_elsewhere(self) -> None:
        """Checks the runs of other processes; a run that was interrupted there returns here."""
        self.last_poll = time.monotonic()
        for job in list(self.running_elsewhere):
            if self.needs_run(job):
                self.waiting.append(job)
                self.running_elsewhere.remove(job)
            elif self.results[job.index] is not None:
                self.running_elsewhere.remove(job)

    def needs_run(self, job: PoolJob) -> bool:
        """Returns whether a job has neither ended nor runs in another process.

        Records the result of a job that has ended.
        """
        if job.config is None:
            self.end(job, JobResult(False, None, job.error))
            return False
        try:
            status = _job_status(job, job.config)
        except VggexpError as error:
            self.end(job, JobResult(False, None, str(error)))
            return False
        if status in ("finished", "failed"):
            result = _recorded_result(job)
            self.results[job.index] = result
            if not result.ok:
                self.on_failure(job)
            text = f"{job.folder.name}  {result.error}"
            self.progress.previously_done(job.index, result.ok, text)
        elif status == "running" and job not in self.running_elsewhere:
            self.wait_elsewhere(job)
        return status == "missing"

    def wait_elsewhere(self, job: PoolJob) -> None:
        """Waits for a job that another process runs."""
        self.progress.on_wait(job.index, job.folder.name)
        self.running_elsewhere.append(job)

    def start(self, job: PoolJob, slot: WorkerSlot) -> None:
        assert job.config is not None
        log = self.log(job)
        refuse_link(log)
        slot.log_start = log.stat().st_size if log.exists() else 0
        slot.started_at = time.monotonic()
        slot.pid = processes.fork_call(lambda: self.perform(job), log, slot.variables)
        slot.job = job
        epochs = command_epochs(job.config)
        running = RunningJob(job.index, job.folder, epochs, log, job.trained, job.epochs_share)
        self.progress.job_started(slot.index, running)

    def log(self, job: PoolJob) -> Path:
        return self.logs / f"{job.folder.name}.log"

    def reap(self) -> None:
        """Records the results of the processes that have ended."""
        for slot in self.busy():
            code = processes.poll(slot.pid)
            if code is None or slot.job is None:
                continue
            job = slot.job
            slot.job = None
            self.progress.slot_freed(slot.index)
            if code == InUseError.exit_code:  # another process was faster
                self.wait_elsewhere(job)
                continue
            try:
                result = _result_of(job, code, last_error_line(self.log(job), slot.log_start))
            except InUseError:  # another process continues the run that was killed here
                self.wait_elsewhere(job)
                continue
            except VggexpError as error:
                result = JobResult(False, None, str(error))
            self.end(job, result, time.monotonic() - slot.started_at, stopped=code > 128)

    def on_failure(self, job: PoolJob) -> None:
        """Starts no other job with sweep.on_error=stop, also if an earlier try has failed."""
        if job.config is not None and job.config.sweep.on_error == "stop":
            self.stop_starting = True

    def end(
        self,
        job: PoolJob,
        result: JobResult,
        seconds: float | None = None,
        stopped: bool = False,
    ) -> None:
        """Records and prints the result of a job.

        Args:
            job: the job.
            result: the result.
            seconds: the time that the job took; None for a job that was not started.
            stopped: whether a stop signal ended the job.
        """
        self.results[job.index] = result
        state = "paused" if result.paused else "finished"
        if not result.ok:
            state = "stopped" if stopped else "failed"
        if state == "failed":
            self.on_failure(job)
        parts = [job.folder.name, result.error]
        if result.objective is not None and job.config is not None:
            parts[1] = f"{job.config.sweep.objective} {format_metric(result.objective)}"
        if seconds is not None:
            parts.append(duration(seconds))
            if state == "failed":
                parts.append(f"({self.log(job)})")
        self.progress.job_ended(job.index, state, "  ".join(parts))


def preload(jobs: Sequence[PoolJob]) -> None:
    """Imports modules and reads data, on one thread, for the forks of this process.

    An error here is no error of the sweep: each job meets and reports it.
    """
    import torch

    torch.set_num_threads(1)
    import torch.utils.tensorboard._pytorch_graph
    from PIL import Image, ImageDraw, ImageFont  # noqa: F401

    import vggexp.loggers.images
    import vggexp.runner.run  # noqa: F401
    from vggexp.data import datasets, torchvision_data

    Image.preinit()  # imports the usual formats
    for job in jobs:
        if job.config is None or isinstance(job.config.data, Synthetic | ImageFiles):
            continue
        data = job.config.data
        if isinstance(data, TorchvisionArrays):
            torchvision_data.preload(torchvision_source(data))
        else:
            datasets.preload(data.name, Path(data.root) if data.root else None)


def _job_status(job: PoolJob, config: Config) -> str:
    """Returns finished, failed (not to be repeated), running (elsewhere) or missing.

    Raises CheckpointError if the directory belongs to another configuration.
    """
    if config.resume == "never":
        return "missing"
    if records.done_result(config) is not None:
        return "finished"
    if locks.is_locked(job.folder):
        return "running"
    failed = records.own_result(config, job.folder).get("state") == "failed"
    return "failed" if failed and not config.sweep.retry_failed else "missing"


def _recorded_result(job: PoolJob) -> JobResult:
    """Reads the result of a job from its run directory.

    Raises CheckpointError if the directory belongs to another configuration.
    """
    assert job.config is not None
    objective = job.config.sweep.objective
    # With resume=never no run is done, but the job's own run has its result.
    result = records.done_result(job.config) or records.own_result(job.config, job.folder)
    state = result.get("state")
    # A run that is paused at an earlier epoch has not done this job.
    is_paused = state == "paused" and result.get("epoch") == job.config.run.until
    if state != "finished" and not is_paused:
        return JobResult(False, None, result.get("error") or "")
    error = records.missing_objective(result, objective) if state == "finished" else ""
    return JobResult(True, result.get(objective), error, is_paused)


def _result_of(job: PoolJob, code: int, error_line: str) -> JobResult:
    """Returns the result of a job that has ended.

    Args:
        job: the job.
        code: the exit code, or minus the signal that killed the job.
        error_line: the last line of the job's output.

    Raises:
        CheckpointError: the run directory belongs to another configuration.
        InUseError: the job was killed, and another process already continues the run.
    """
    killed = f"killed by {processes.signal_name(code)}" if code < 0 else ""
    if killed:
        directory.mark_interrupted(job.folder, killed, 128 - code)
    result = _recorded_result(job)
    if code == 0 or result.ok:  # what happens after the end of a run does not undo it
        return result
    # result.json may hold the error of an earlier attempt.
    return JobResult(False, None, killed or error_line or result.error or f"exit {code}")


def last_error_line(log: Path, start: int = 0) -> str:
    """Returns the error line with which a job ended, or else the last line that it printed.

    Args:
        log: the job's output; the file need not exist.
        start: bytes that earlier attempts wrote.
    """
    lines = [line for line in read_tail(log, MAX_LOG_BYTES, start) if line.strip()]
    error_lines = [line for line in lines if line.startswith("vggexp: ")]
    last = (error_lines or lines or [""])[-1]
    return last.removeprefix("vggexp: ").removeprefix("error: ")
