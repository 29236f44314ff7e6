"""Runs a checked command under Hydra: starts Hydra, and trains each job that Hydra passes back."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp.cli import report_error
from vggexp.config import completion, compose, hydra_safety, run_id
from vggexp.config.schema import Config, Sweep
from vggexp.data.image_folder import cached_reads
from vggexp.distributed.rank import rank_info
from vggexp.errors import ConfigError, VggexpError
from vggexp.formatting import error_line, one_line
from vggexp.loggers.console import print_text
from vggexp.runs import records
from vggexp.runs.directory import RESULT, RUN_MODE, read_result
from vggexp.sweep.expand import sweep_keys, validate_node
from vggexp.system import processes
from vggexp.system.signals import handle_stop_signals

# Launchers that run several jobs in one process, which a job that dies would end.
SHARED_PROCESS_LAUNCHERS = ("basic", "joblib", "submitit_local")
POLL_SECONDS = 0.05


class HydraTask:
    """The function that Hydra calls for each job of a command.

    A call ends in one of three ways:

    - The job has finished: the call returns the job's objective, for the sweeper.
    - A job of a sweep has failed: the call returns None, so that Hydra goes on with the other
      jobs. The result table reads the failure from result.json.
    - A single run has failed, a stop signal has ended a job, or the local launcher has started
      the job: the call raises SystemExit with the exit code. SystemExit passes through Hydra
      unchanged, and the local launcher reads the exit code of each of its processes.

    Hydra gives the task to its sweeper and its launcher. They read the jobs of a checked grid
    from it, and leave the errors of the jobs in `errors`.
    """

    def __init__(
        self,
        configs: Mapping[tuple[str, ...], Config] | None = None,
        sweep: Sweep | None = None,
        swept: Sequence[str] = (),
        first_words: Sequence[str] = (),
    ):
        """Creates the task of a run or a sweep.

        Args:
            configs: the checked configurations of a grid by overrides (`GridSweep.configs`).
            sweep: the section `sweep`.
            swept: the keys with several values in the sweep.
            first_words: precede the overrides in the record of a run; see `expand.first_words`.
        """
        self.configs = configs or {}
        self.sweep = sweep
        self.swept = swept
        self.first_words = first_words
        self.errors: dict[tuple[str, ...], str] = {}  # of failed jobs, by overrides

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the configurations: a launcher may pickle the task once for each job."""
        return vars(self) | {"configs": {}, "sweep": None, "errors": {}}

    def __call__(self, node: DictConfig) -> float | None:
        with cached_reads():
            return self._run_job(node)

    def _run_job(self, node: DictConfig) -> float | None:
        hydra_config: Any = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        in_sweep = hydra_config.mode == RunMode.MULTIRUN
        launcher = hydra_safety.plugin_name(hydra_config, "launcher")
        code: int | None = None  # of a job that needs no training in this process
        try:
            # Checks also the jobs that a search has just made.
            config = validate_node(node, hydra_config)
            words = self._recorded_words(config, overrides)
            folder = records.run_dir(config)  # before training: with resume=never it is a new one
            if in_sweep and launcher != "local":
                code = _code_without_training(config, words, folder, launcher, self.swept)
        except VggexpError as error:
            self.errors[tuple(overrides)] = str(error)
            report_error(error, should_report_error)
            code = error.exit_code
        if code is None:
            # Prints its own errors.
            code = train_job(config, words, in_sweep, self.swept)
            if in_sweep and code == 128 + signal.SIGTERM:
                requeue_if_preempted()
        if code == 0:
            return read_result(folder).get(config.sweep.objective)
        if in_sweep and launcher != "local" and code < 128:
            return None
        raise SystemExit(code)

    def _recorded_words(self, config: Config, overrides: Sequence[str]) -> list[str]:
        """Returns the command of the run; a file may have keys that only a sweep can follow."""
        words = list(self.first_words)
        if RUN_MODE not in words and sweep_keys(config.sweep):
            words.append(RUN_MODE)
        return [*words, *overrides]


def run_hydra(command: compose.Command, *overrides: str, task: HydraTask | None = None) -> int:
    """Runs hydra.main on a command.

    Args:
        command: the command; hydra.main needs its flags before the overrides.
        overrides: additional overrides.
        task: runs the jobs; needed for a grid, whose jobs the task holds.

    Returns:
        The exit code.

    Raises:
        VggexpError: a launcher failed.
    """
    hydra_safety.install()
    completion.install()
    sys.argv = [sys.argv[0], *command.flags, *command.overrides, *overrides]
    decorate = hydra.main(
        config_path=compose.conf_dir(), config_name="config", **compose.VERSION_BASE
    )
    try:
        decorate(task or HydraTask())()
    except ConfigCompositionException as error:  # of --hydra-help, which knows no other keys
        raise ConfigError(one_line(error)) from error
    except SystemExit as end:
        if isinstance(end.code, VggexpError):  # of a launcher: passes through Hydra unchanged
            raise end.code from None
        return end.code if isinstance(end.code, int) else 1
    return 0


def _code_without_training(
    config: Config,
    overrides: Sequence[str],
    folder: Path,
    launcher: str | None,
    swept: Sequence[str],
) -> int | None:
    """Returns the exit code of a job that failed before, or that a child process has trained.

    Returns:
        The exit code, or minus the signal that killed the child; None for a job that this
        process has to train.
    """
    if _already_failed(config, folder):
        return 1
    shares_process = launcher in SHARED_PROCESS_LAUNCHERS
    if shares_process and records.done_result(config) is None:
        return _train_in_child(config, overrides, swept)
    return None


def _already_failed(config: Config, folder: Path) -> bool:
    if config.sweep.retry_failed or records.own_result(config, folder).get("state") != "failed":
        return False
    reason = f"({RESULT} has the reason; sweep.retry_failed=true tries again)"
    print_text(f"failed before: {folder} {reason}")
    return True


def train_job(
    config: Config, overrides: Sequence[str], in_sweep: bool = False, swept: Sequence[str] = ()
) -> int:
    """Trains in this process, or starts the ranks of `device.processes`.

    Args:
        config: a checked configuration.
        overrides: the words of the run's record; see `HydraTask`.
        in_sweep: whether a bug ends only this job, with a traceback; else the bug is raised.
        swept: the keys with several values in the sweep.

    Returns:
        The exit code; the errors have been printed.
    """
    try:
        ranks = rank_info().size
        if ranks == 1 and report_if_done(config):
            return 0
        if ranks == 1 and (config.device.processes or 1) > 1:
            from vggexp.runner import launch

            return launch.run_ranks(config, overrides, swept)
        from vggexp.runner.run import run  # imports torch, once there is something to train

        run(config, overrides, swept=swept)
    except VggexpError as error:
        report_error(error, should_report_error)
        return error.exit_code if error.signal is None else 128 + error.signal
    except Exception:
        if not in_sweep:
            raise
        traceback.print_exc()
        return 1
    return 0


def should_report_error(text: str) -> bool:
    """Returns whether this rank prints an error of this text. A single rank needs no torch."""
    if rank_info().size == 1:
        return True
    from vggexp.distributed import collectives

    return collectives.should_report_error(text)


def report_if_done(config: Config) -> bool:
    """Prints the result of a run with nothing left to do. Returns whether it is one."""
    result = records.done_result(config)
    if result is None:
        return False
    print_text(records.done_line(config, result))
    return True


def _train_in_child(config: Config, overrides: Sequence[str], swept: Sequence[str]) -> int:
    """Trains in a child process, which may crash, and sends the first stop signal on to it.

    Returns:
        The exit code, or minus the signal that killed the child.
    """
    import vggexp.runner.run  # noqa: F401  # once, for all jobs of this process

    with handle_stop_signals() as stop:
        pid = processes.fork_call(lambda: train_job(config, overrides, True, swept))
        signal_sent = False
        try:
            code = processes.poll(pid)
            while code is None:
                if stop.signal and not signal_sent:
                    os.kill(pid, stop.signal)
                    signal_sent = True
                time.sleep(POLL_SECONDS)
                code = processes.poll(pid)
        except BaseException:  # a second Ctrl-C: no job outlives its sweep
            os.kill(pid, signal.SIGINT)
            os.waitpid(pid, 0)
            raise
    if code < 0:
        text = f"{run_id.run_name(config)}: killed by {processes.signal_name(code)}"
        print(error_line(text), file=sys.stderr)
    return code


def requeue_if_preempted() -> None:
    """Requeues this Slurm job of submitit if Slurm preempted it.

    Slurm itself requeues only a job that it had to kill. A job that saves and exits within the
    grace time would be lost. A cancelled job stays cancelled.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    job_id = _slurm_job_id()
    show = ["scontrol", "--oneliner", "show", "job", job_id]
    output = subprocess.run(show, capture_output=True, text=True).stdout
    fields = {}
    for word in output.split():
        key, _, value = word.partition("=")
        fields[key] = value
    if fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") != "None":
        subprocess.run(["scontrol", "requeue", job_id])


def _slurm_job_id() -> str:
    """Returns an id as 7_0: the plain id of an array's last job stands for the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID", "")
