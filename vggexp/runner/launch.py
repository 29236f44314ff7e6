"""Starts several ranks of one run on this machine with torch's elastic launch, and awaits them."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vggexp.cli import report_error
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import ConfigError, InUseError, RankError, VggexpError
from vggexp.runs import directory, records
from vggexp.system import processes
from vggexp.system.cpu import default_threads
from vggexp.system.signals import (
    STOP_SIGNALS,
    STOPPED_AT_ONCE,
    STOPPING,
    StopFlag,
    handle_stop_signals,
)

POLL_SECONDS = 0.05


def run_ranks(config: Config, overrides: Sequence[str], swept: Sequence[str] = ()) -> int:
    """Trains with `device.processes` ranks.

    Returns:
        The exit code; the ranks have printed its reason.

    Raises:
        ConfigError: the machine has fewer GPUs than ranks.
        RankError: a rank was killed.
        KeyboardInterrupt: a second Ctrl-C came.
    """
    ranks = config.device.processes or 1
    folder = records.run_dir(config)
    if config.device.name == "cuda" and torch.cuda.device_count() < ranks:
        raise ConfigError(
            f"device.processes={ranks}: this machine has {torch.cuda.device_count()} GPUs"
        )
    try:
        with (
            handle_stop_signals(STOPPING) as stop,
            tempfile.TemporaryDirectory() as logs,
            _divide_threads(ranks),
            _restored_quit_handler(),
            processes.hidden_main_module(),
            _quiet_launch(),
            _forward_signals(stop),
        ):
            launch_ranks = elastic_launch(_launch_config(ranks, logs), run_rank)
            launch_ranks(config, list(overrides), list(swept))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            reason = f"rank {rank} was killed by {processes.signal_name(failure.exitcode)}"
            _mark_interrupted(folder, reason, RankError.exit_code, ("running", "interrupted"))
            raise RankError(f"{reason}; {records.resume_hint(config, folder)}") from None
        # Recorded here, because rank 0 may not have been able to record it.
        _mark_interrupted(folder, f"rank {rank} has failed", failure.exitcode)
        return failure.exitcode
    except KeyboardInterrupt:
        _mark_interrupted(folder, STOPPED_AT_ONCE, 128 + signal.SIGINT)
        raise
    return 0


def _mark_interrupted(
    folder: Path, reason: str, exit_code: int, states: Collection[str] = ("running",)
) -> None:
    """Calls `directory.mark_interrupted`, unless another process works on the run."""
    with contextlib.suppress(InUseError):
        directory.mark_interrupted(folder, reason, exit_code, states=states)


def run_rank(config: Config, overrides: list[str], swept: list[str]) -> None:
    """Trains one rank in a process of its own; exits with a code other than 0 if it fails."""
    from vggexp.runner.run import run

    os.setpgid(0, 0)  # the starting process gets the terminal's signals and forwards them
    with handle_stop_signals() as stop:
        code = 0
        try:
            run(config, overrides, stop, swept)
        except RankError as error:
            code = error.exit_code
            if stop.signal is None:  # after a signal the starting process reports the lost rank
                report_error(error, collectives.should_report_error)
        except VggexpError as error:
            report_error(error, collectives.should_report_error)
            code = error.exit_code
            if error.signal is not None:
                code = 128 + error.signal
        except Exception as error:
            code = 1
            if collectives.should_report_error(str(error)):
                traceback.print_exc()
        processes.flush_output()
    if code:
        sys.exit(code)


def _launch_config(ranks: int, logs: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="vggexp",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the same command continues a run
        start_method="spawn",  # a fork cannot use CUDA
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        signals_to_handle="SIGQUIT",  # handle_stop_signals handles the other signals
    )


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the block."""
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _divide_threads(ranks: int) -> Iterator[None]:
    """Gives each rank its part of this job's threads."""
    threads = max(1, default_threads() // ranks)
    with _environment(OMP_NUM_THREADS=str(threads)):
        yield


@contextlib.contextmanager
def _quiet_launch() -> Iterator[None]:
    """Silences torch's logs about the end of a rank, which one line of ours reports instead."""
    logging.disable(logging.CRITICAL)
    try:
        with _environment(TORCH_CPP_LOG_LEVEL=os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _restored_quit_handler() -> Iterator[None]:
    """Sets the handler of SIGQUIT again, in place of that which the elastic launch leaves."""
    handler = signal.getsignal(signal.SIGQUIT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGQUIT) is not handler:
            signal.signal(signal.SIGQUIT, handler)


@contextlib.contextmanager
def _forward_signals(stop: StopFlag) -> Iterator[None]:
    """Forwards a stop signal to the ranks.

    Ranks start with stop signals blocked, until they can handle them. They inherit the blocked
    signals from this thread, so this thread blocks them for the whole launch. Another thread
    receives the signals; Python still runs the handlers in this thread.
    """
    ended = threading.Event()
    signums = [getattr(signal, name) for name in STOP_SIGNALS]
    forwarder = threading.Thread(target=_forward_until, args=(stop, ended), daemon=True)
    forwarder.start()
    _start_resource_tracker()  # before the signals are blocked: its start unblocks them
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        ended.set()
        forwarder.join()


def _start_resource_tracker() -> None:
    """Starts multiprocessing's tracker without its warnings on what a killed rank leaves behind."""
    with _environment(PYTHONWARNINGS="ignore::UserWarning:multiprocessing.resource_tracker"):
        resource_tracker.ensure_running()


def _forward_until(stop: StopFlag, ended: threading.Event) -> None:
    """Sends the stop signal to each rank once, and SIGKILL after a second Ctrl-C."""
    signaled: set[int] = set()
    while not ended.wait(POLL_SECONDS):
        if stop.signal is None:
            continue
        for rank in multiprocessing.active_children():
            if stop.at_once:  # the elastic launch would give the ranks half a minute
                rank.kill()
            elif rank.pid is not None and rank.pid not in signaled:
                signaled.add(rank.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, stop.signal)
