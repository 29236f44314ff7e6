"""Functions for Python programs and notebooks: runs, their configuration and their cost.

Each override is a text, as on the command line of `python -m vggexp`. An error of a command is an
exception of `vggexp.errors` here, with the same text.
"""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp.cli import translate_os_errors
from vggexp.config.compose import Command, parse_command
from vggexp.config.schema import Config
from vggexp.cost_plan import CostPlan, plan_costs
from vggexp.distributed.rank import rank_info
from vggexp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InUseError,
    RankError,
    ResourceError,
    VggexpError,
)
from vggexp.runs import directory, records
from vggexp.runs.data_source import pin_data
from vggexp.sweep.expand import compose_run
from vggexp.sweep.task import report_if_done

if TYPE_CHECKING:
    from vggexp.runner.load import LoadedRun

CONFIG_DIR = "--config-dir="  # the only flag that a function takes
ERRORS = (  # each has an exit code of its own
    ConfigError,
    DataError,
    CheckpointError,
    DivergedError,
    ResourceError,
    InUseError,
    RankError,
)

# Hydra and torch have settings of the whole process, so threads take turns.
_COMPOSE_LOCK = threading.RLock()
_RUN_LOCK = threading.RLock()


def compose(*overrides: str) -> Config:
    """Returns the checked configuration of a run. Raises ConfigError with every problem."""
    with _COMPOSE_LOCK, translate_os_errors():
        return compose_run(_parse(overrides))


def plan(*overrides: str) -> CostPlan:
    """Returns what a configuration costs, without torch; `print` shows it as a table.

    Raises:
        ConfigError: with every problem of the configuration.
        DataError: the folder of images holds no classes.
    """
    with _COMPOSE_LOCK, translate_os_errors():
        return plan_costs(compose_run(_parse(overrides)))


def run(*overrides: str) -> "LoadedRun":
    """Trains a run, or continues it, or finds it finished; returns it as `load_run` does.

    Raises:
        VggexpError: with the text of the command's error.
        KeyboardInterrupt: Ctrl-C has stopped the run, after a checkpoint.
    """
    with translate_os_errors():
        with _COMPOSE_LOCK:
            command = _parse(overrides)
            config = pin_data(compose_run(command))
        _reject_ranks()
        with _RUN_LOCK:
            folder = records.run_dir(config)  # before training: with resume=never it is a new one
            if not report_if_done(config):
                _train(config, [*command.file_flags, *command.overrides], folder)
        from vggexp.runner.load import load_run

        return load_run(folder)


def _parse(overrides: tuple[str, ...]) -> Command:
    """Sorts the overrides as a command line. Raises ConfigError for what is none."""
    for word in overrides:
        if not isinstance(word, str):
            raise ConfigError(
                f"{type(word).__name__}: not an override; give each one as a text, such as 'seed=1'"
            )
        if word.startswith("-") and not word.startswith(CONFIG_DIR):
            raise ConfigError(f"{word}: a flag of the command; a function takes {CONFIG_DIR}FOLDER")
    return parse_command(overrides)


def _reject_ranks() -> None:
    ranks = rank_info().size
    if ranks > 1:
        raise ConfigError(
            f"vggexp.run: torchrun or srun has started this program {ranks} times; "
            f"start it once with device.processes={ranks}, or use python -m vggexp"
        )


def _train(config: Config, words: list[str], folder: Path) -> None:
    """Trains in this process, or in the ranks of `device.processes`.

    Raises:
        KeyboardInterrupt: in place of StoppedError after Ctrl-C, so that a loop over runs ends.
    """
    try:
        if (config.device.processes or 1) > 1:
            from vggexp.runner import launch

            if code := launch.run_ranks(config, words):
                raise error_of_ranks(folder, code)
        else:
            from vggexp.runner.run import run as train_here

            train_here(config, words)
    except VggexpError as error:
        if error.exit_code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt(str(error)) from None


def error_of_ranks(folder: Path, code: int) -> VggexpError:
    """Returns the error with which the ranks have ended, as their run directory records it."""
    result = directory.read_result(folder)
    text = "device.processes: a rank has failed; the lines above hold the reason"
    if result.get("exit_code") == code and result.get("error"):
        text = result["error"]
    for error_class in ERRORS:
        if error_class.exit_code == code:
            return error_class(text)
    error = VggexpError(text)
    error.exit_code = code
    return error
