"""The command line of a door that takes run directories."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vggexp.distributed.rank import rank_info
from vggexp.errors import ConfigError, StoppedError, VggexpError
from vggexp.formatting import error_line
from vggexp.loggers.console import Console
from vggexp.runs.directory import require_run
from vggexp.system.signals import clear_pending_interrupt


def parse_run_command(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """`run`: Path of a run directory, and `json`. Raises ConfigError, CheckpointError."""
    made = parser(description)
    made.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    arguments = made.parse_intermixed_args(argv)
    require_run(arguments.run)
    return arguments


def parser(description: str) -> argparse.ArgumentParser:
    """With --help and --json; a wrong command raises ConfigError. description: opens with `python -m DOOR ...: `."""
    first, _, rest = description.partition("\n")
    usage = first.removeprefix("python -m ").partition(":")[0]
    raw = argparse.RawDescriptionHelpFormatter  # keeps paragraphs
    made = argparse.ArgumentParser(
        prog=usage.split()[0], description=first + "\n" + rest, formatter_class=raw
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.error = _refuse  # type: ignore[method-assign, assignment]
    return made


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --help")


NOTHING_WRITTEN = "stopped by Ctrl-C: nothing was written"


def run_command(answer: Callable[[], str | None], stopped: str | None = None) -> int:
    """Prints what a door answers, or its expected end in one line; the exit code.

    stopped: what is told after Ctrl-C; None leaves that to Python.
    """
    try:
        text = answer()
    except VggexpError as error:
        print(error_line(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if stopped is None:
            raise
        clear_pending_interrupt()
        print(error_line(stopped), file=sys.stderr)
        return 128 + signal.SIGINT
    if text is not None:
        Console(None).line(text)
    return 0


def report_error(error: VggexpError) -> int:
    """Tells an expected end in one line, of several ranks only one; its exit code."""
    here = rank_info()
    if here.size == 1 or _should_report(str(error)):
        message = f"rank {here.rank}: {error}" if here.rank else str(error)
        print(
            f"vggexp: {message}" if isinstance(error, StoppedError) else error_line(message),
            file=sys.stderr,
        )
    if os.environ.get("VGGEXP_TRACEBACK"):
        raise error
    return error.exit_code


def _should_report(text: str) -> bool:
    from vggexp.distributed import collectives  # imports torch

    return collectives.should_report_error(text)
