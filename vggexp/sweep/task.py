"""What a job of a sweep asks of Slurm's controller."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp.cli import report_error
from vggexp.config import compose, run_id
from vggexp.config.schema import Config
from vggexp.distributed.rank import rank_info
from vggexp.errors import VggexpError
from vggexp.formatting import error_line
from vggexp.runs import records
from vggexp.runs.directory import RESULT, read_result
from vggexp.sweep import expand
from vggexp.system import processes
from vggexp.system.signals import handle_stop_signals

SHARED_PROCESS_LAUNCHERS = (
    "basic",
    "joblib",
    "submitit_local",
)  # launchers of which a job that dies takes more with it


def run_hydra(command: compose.Command, *overrides: str) -> int:
    """Enters hydra.main with flags and overrides in the order that its parser wants."""
    sys.argv = [sys.argv[0], *command.flags, *command.overrides, *overrides]
    entry = hydra.main(
        config_path=compose.conf_dir(), config_name="config", **compose.VERSION_BASE
    )(task)
    try:
        entry()
    except SystemExit as end:
        if isinstance(end.code, VggexpError):  # of a launcher: it passes through Hydra as it is
            raise end.code from None
        return end.code if isinstance(end.code, int) else 1
    return 0


def task(node: DictConfig) -> float | None:
    """What Hydra runs for each job. Where jobs share a process, one that fails is told and not raised."""
    job = HydraConfig.get()
    many = job.mode == RunMode.MULTIRUN
    launcher = job.runtime.choices.get("hydra/launcher")
    try:
        config = expand.validate_node(node)  # a search has made it only now
        folder = records.run_dir(config)
        if many and launcher != "local" and _already_failed(config):
            return None
        if (
            many
            and launcher in SHARED_PROCESS_LAUNCHERS
            and records.finished_result(config) is None
        ):
            return _train_in_child(folder, config, list(job.overrides.task))
    except VggexpError as error:
        report_error(error)
        code = error.exit_code
    else:
        code = train_job(config, list(job.overrides.task))
        if code == 0:
            return read_objective(folder, config)
        if many and code == 128 + signal.SIGTERM:
            requeue_if_preempted()
    if many and launcher != "local" and code < 128:
        return None
    raise SystemExit(code)


def train_job(config: Config, overrides: list[str]) -> int:
    """Trains in this process; the exit code."""
    try:
        ranks = rank_info().size
        if ranks == 1 and report_if_finished(config) is not None:
            return 0
        if ranks == 1 and (config.device.processes or 1) > 1:
            from vggexp.runner import launch

            return launch.run_ranks(config, overrides)
        from vggexp.runner.run import run  # imports torch, once there is something to train

        run(config, overrides)
    except VggexpError as error:
        code = report_error(error)
        return code if error.signal is None else 128 + error.signal
    except Exception:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        traceback.print_exc()  # a bug ends its own job only, and is not kept quiet
        return 1
    return 0


def _train_in_child(folder: Path, config: Config, overrides: list[str]) -> float | None:
    """Trains in a process of its own, which may end as it will; a stop signal is passed on to it."""
    import vggexp.runner.run  # noqa: F401  (once, for all jobs of this process)

    with handle_stop_signals() as stop:
        pid = processes.fork_call(lambda: train_job(config, overrides))
        passed_on = False
        try:
            while (code := processes.poll(pid)) is None:
                if stop.signal and not passed_on:
                    os.kill(pid, stop.signal)
                    passed_on = True
                time.sleep(0.05)
        except BaseException:  # a second Ctrl-C: no job outlives its sweep
            os.kill(pid, signal.SIGINT)
            os.waitpid(pid, 0)
            raise
    if code < 0:
        print(
            error_line(f"{run_id.run_name(config)}: killed by {processes.signal_name(code)}"),
            file=sys.stderr,
        )
    if code >= 128:
        raise SystemExit(code)
    return read_objective(folder, config) if code == 0 else None


def read_objective(folder: Path, config: Config) -> float | None:
    """What a sweeper is told of a run that has finished."""
    return read_result(folder).get(config.sweep.objective)


def _already_failed(config: Config) -> bool:
    folder = records.run_dir(config)
    if read_result(folder).get("state") != "failed" or config.sweep.retry_failed:
        return False
    print(f"failed before: {folder} ({RESULT} has the reason; sweep.retry_failed=true tries again)")
    return True


def report_if_finished(config: Config) -> dict[str, Any] | None:
    """Says so where this very run is finished already; its result."""
    result = records.finished_result(config)
    if result is not None:
        print(records.finished_line(config, result))
    return result


def requeue_if_preempted() -> None:
    """Puts this job of submitit into the queue again, where it was preempted: Slurm itself does so only for a job that
    it had to kill, and one that saves and ends in its time of grace would be lost. A cancelled job stays cancelled.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    job = _number()
    show = ["scontrol", "--oneliner", "show", "job"]
    words = subprocess.run([*show, job], capture_output=True, text=True).stdout.split()
    facts = dict(word.partition("=")[::2] for word in words)
    if facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None":
        subprocess.run(["scontrol", "requeue", job])


def _number() -> str:
    """7_0: the bare number of an array's last job stands for the whole array."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")
