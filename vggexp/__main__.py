"""python -m vggexp: checks the command, then trains one run or a sweep of them."""

import os
import sys
from collections.abc import Sequence

from vggexp.cli import report_error
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.distributed.rank import rank_info
from vggexp.errors import ConfigError, VggexpError
from vggexp.sweep import expand
from vggexp.sweep.command import run_search, run_sweep
from vggexp.sweep.search_space import SearchPlan
from vggexp.sweep.task import report_if_finished, run_hydra
from vggexp.system.signals import clear_pending_interrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; an expected end prints one line on stderr, a bug its traceback."""
    try:
        return dispatch(compose.parse_command(sys.argv[1:] if argv is None else argv))
    except VggexpError as error:
        return report_error(error)
    except KeyboardInterrupt:
        clear_pending_interrupt()
        print("vggexp: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(command: compose.Command) -> int:
    if any(getattr(command.arguments, flag) for flag in compose.HYDRA_FLAGS):
        if command.arguments.cfg:
            expand.check_composes(command)
        return run_hydra(command)
    loaded = expand.load_command(command)
    if rank_info().size > 1:
        _check_ranks(loaded, rank_info().size)
        return run_hydra(command)
    if isinstance(loaded, list):
        return run_sweep(command, loaded)
    if isinstance(loaded, SearchPlan):
        return run_search(command, loaded)
    if loaded is not None and report_if_finished(loaded) is not None:
        return 0
    return run_hydra(command)


def _check_ranks(loaded: object, size: int) -> None:
    """Raises ConfigError where others have started several ranks of what is no single run, or of a run of fewer."""
    if not isinstance(loaded, Config):
        raise ConfigError(
            f"-m: each of the {size} ranks would run the whole sweep; start it once, without torchrun or srun, "
            f"with device.processes={size}"
        )
    if loaded.device.processes not in (None, size):
        raise ConfigError(
            f"device.processes={loaded.device.processes}: {size} have been started; leave it out"
        )


if __name__ == "__main__":
    sys.exit(main())
