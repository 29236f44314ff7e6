"""Several ranks of one run, started on this machine by torch's elastic launch, and watched until they end."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vggexp.cli import report_error
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import ConfigError, RankError, VggexpError
from vggexp.runs import directory, records
from vggexp.system import processes
from vggexp.system.cpu import default_threads
from vggexp.system.signals import STOP_SIGNALS, StopFlag, handle_stop_signals

POLL_SECONDS = 0.05
STOPPED_AT_ONCE = "stopped at once by a second Ctrl-C"


def run_ranks(config: Config, overrides: Sequence[str]) -> int:
    """Trains with device.processes ranks; the exit code, whose reason the ranks have told. Raises ConfigError,
    RankError where one of them was killed, KeyboardInterrupt after a second Ctrl-C."""
    ranks = config.device.processes or 1
    folder = records.run_dir(config)
    if config.device.name == "cuda" and torch.cuda.device_count() < ranks:
        raise ConfigError(
            f"device.processes={ranks}: this machine has {torch.cuda.device_count()} GPUs"
        )
    try:
        with (
            handle_stop_signals() as stop,
            tempfile.TemporaryDirectory() as logs,
            _shared_cores(ranks),
            _passing_on(stop),
        ):
            elastic_launch(_launch(ranks, logs), run_rank)(config, list(overrides))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            told = f"rank {number} was killed by {processes.signal_name(failure.exitcode)}"
            directory.mark_interrupted(folder, told, RankError.exit_code, "running", "interrupted")
            raise RankError(f"{told}; run the same command to continue") from None
        directory.mark_interrupted(
            folder, f"rank {number} has failed", failure.exitcode
        )  # where rank 0 could not
        return failure.exitcode
    except KeyboardInterrupt:
        directory.mark_interrupted(folder, STOPPED_AT_ONCE, 128 + signal.SIGINT)
        raise
    return 0


def _launch(ranks: int, logs: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="vggexp",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the same command continues
        start_method="spawn",  # a fork has no use of CUDA
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        signals_to_handle="SIGQUIT",  # the others are ours
    )


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


@contextlib.contextmanager
def _shared_cores(ranks: int) -> Iterator[None]:
    """Each rank has its part of this job's threads. What torch logs of a rank's end is told in one line instead."""
    logging.disable(logging.CRITICAL)
    try:
        threads = str(max(1, default_threads() // ranks))
        level = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
        with _variable("OMP_NUM_THREADS", threads), _variable("TORCH_CPP_LOG_LEVEL", level):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _passing_on(stop: StopFlag) -> Iterator[None]:
    """A stop signal goes on to the ranks.

    They are born with such signals held back, until they listen. So this thread holds them back while they are, and
    another takes them: Python's handlers run here all the same.
    """
    ended = threading.Event()
    numbers = [getattr(signal, name) for name in STOP_SIGNALS]
    messenger = threading.Thread(target=_pass_on, args=(stop, ended), daemon=True)
    messenger.start()
    _track_quietly()  # before the signals are held back: it lets them through when it starts
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        ended.set()
        messenger.join()


def _track_quietly() -> None:
    """What a killed rank leaves behind is cleared up without a word."""
    with _variable("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"):
        resource_tracker.ensure_running()


def _pass_on(stop: StopFlag, ended: threading.Event) -> None:
    reached: set[int | None] = set()
    while not ended.wait(POLL_SECONDS):
        for rank in multiprocessing.active_children() if stop.signal else ():
            if stop.at_once:  # elastic would give them half a minute
                rank.kill()
            elif rank.pid is not None and rank.pid not in reached:
                reached.add(rank.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, stop.signal or signal.SIGTERM)


def run_rank(config: Config, overrides: list[str]) -> None:
    """A rank, in a process of its own; exits with its code where that is not 0."""
    from vggexp.runner.run import run as run_together

    os.setpgid(0, 0)  # the terminal's signals are the starter's to pass on
    with handle_stop_signals() as stop:
        code = 0
        try:
            run_together(config, overrides, stop)
        except RankError as error:
            code = error.exit_code
            if stop.signal is None:  # else the starter has noticed, and tells which rank it was
                report_error(error)
        except VggexpError as error:
            code = report_error(error)
            code = code if error.signal is None else 128 + error.signal
        except Exception as error:
            code = 1
            if collectives.should_report_error(str(error)):
                traceback.print_exc()
        processes.flush_output()
    if code:
        sys.exit(code)
