"""Parses the command line of a command, and prints its result or its error.

Each expected error (`VggexpError`) is printed as one line on stderr, and the process ends with
the error's exit code. Setting the environment variable `VGGEXP_TRACEBACK` to any text prints the
traceback of an error of `python -m vggexp` too, for a maintainer who looks for its origin.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from vggexp.config.schema import Config
from vggexp.distributed.rank import rank_info
from vggexp.errors import ConfigError, ResourceError, StoppedError, VggexpError
from vggexp.formatting import error_line, printable
from vggexp.loggers.console import Console, print_text, redirect_to_null
from vggexp.system.signals import GRACE_SECONDS, clear_pending_interrupt, time_limit

if TYPE_CHECKING:  # a command that reads no run needs none of it
    from vggexp.runs.records import RunRecord

STOPPED = "stopped by Ctrl-C"
NOTHING_WRITTEN = f"{STOPPED}: nothing was written"


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError for a wrong command, and ResourceError for help that is lost."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")

    def print_help(self, file: object = None) -> None:
        print_text(self.format_help().rstrip())


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser with --help and --json, which raises ConfigError for a wrong command."""
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps paragraphs
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(main_fn: Callable[[], str | None], interrupt_message: str = STOPPED) -> int:
    """Runs a command and prints its text, or its error in one line; returns the exit code.

    Args:
        main_fn: returns the text to print, or None if it has printed everything itself.
        interrupt_message: error to print after Ctrl-C.
    """
    try:
        with translate_os_errors():
            text = main_fn()
            if text is not None:
                print_text(text)
    except StoppedError as error:
        print_stopped(f"vggexp: {printable(str(error))}")
        return error.exit_code
    except VggexpError as error:
        print_error(error_line(str(error)))
        return error.exit_code
    except KeyboardInterrupt:
        clear_pending_interrupt()
        print_stopped(error_line(interrupt_message))
        return 128 + signal.SIGINT
    return 0


def require_one_process(config: Config, action: str) -> None:
    """Raises ConfigError if a run of this configuration has several processes.

    Args:
        config: of the command.
        action: what the command does with one process: "checked".
    """
    processes = config.device.processes
    if processes not in (None, 1):
        raise ConfigError(f"device.processes={processes}: one process is {action}; leave it out")


def warn_left_out(reason: str) -> None:
    """Prints on stderr why a command leaves out one of the things it was given."""
    print(f"vggexp: warning: {printable(reason)} (left out)", file=sys.stderr)


def warn_newest_checkpoint(run: "RunRecord") -> None:
    """Prints on stderr that a run that is not finished lends the weights it has so far."""
    if run.state == "finished":
        return
    epochs = ""
    if run.state == "paused":
        epochs = f" after epoch {run.result.get('epoch')} of {run.config.get('train.epochs')}"
    warning = f"warning: {run.folder} is {run.state}{epochs}: using its newest checkpoint"
    Console(None, sys.stderr).line(warning)


def note_replaced_files() -> None:
    """Prints on stderr which shipped files the user's own files have replaced in this command."""
    from vggexp.config import own_files  # imports Hydra, as the callers have done

    if rank_info().rank == 0:
        for path in own_files.replaced():
            print(printable(f"vggexp: note: {path} replaces the shipped file"), file=sys.stderr)


@contextlib.contextmanager
def translate_os_errors() -> Iterator[None]:
    """Raises ResourceError for what the machine refuses: a path without permission, or too long."""
    try:
        yield
    except BrokenPipeError:  # nothing is wrong; the reader of the output has exited
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise ResourceError(f"{place}{error.strerror or error}") from error


def report_error(error: VggexpError, should_report: Callable[[str], bool]) -> None:
    """Prints an error in one line, on one of several ranks.

    Args:
        error: its `exit_code` is the exit code of the process.
        should_report: returns whether this rank prints an error of this text.

    Raises:
        VggexpError: the same error, if the environment variable VGGEXP_TRACEBACK is set.
    """
    if should_report(str(error)):
        rank = rank_info().rank
        message = f"rank {rank}: {error}" if rank else str(error)
        if isinstance(error, StoppedError):
            print_stopped(f"vggexp: {printable(message)}")
        else:
            print_error(error_line(message))
    if os.environ.get("VGGEXP_TRACEBACK"):
        raise error


def print_error(line: str) -> None:
    """Prints the last line of a command. A stderr that takes no text changes no exit code."""
    if sys.stderr is None:  # closed; print would write to stdout
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        redirect_to_null(sys.stderr)


def print_stopped(line: str) -> None:
    """Prints the last line of a command that is stopped; gives up if the reader does not read.

    Another Ctrl-C ends the process: nothing is left to save, and a traceback would wait as well.
    """
    earlier = signal.signal(signal.SIGINT, signal.SIG_DFL)
    with time_limit(GRACE_SECONDS):
        print_error(line)
    signal.signal(signal.SIGINT, earlier)
