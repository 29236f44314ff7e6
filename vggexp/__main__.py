"""python -m vggexp: checks a command, then trains one run or the jobs of a sweep."""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence

from vggexp.system.signals import clear_pending_interrupt, end_on_interrupt

with end_on_interrupt():
    from vggexp.cli import (
        note_replaced_files,
        print_error,
        print_stopped,
        report_error,
        translate_os_errors,
    )
    from vggexp.config.compose import HYDRA_FLAGS, Command, parse_command
    from vggexp.data.image_folder import cached_reads
    from vggexp.distributed.rank import rank_info
    from vggexp.errors import ConfigError, VggexpError
    from vggexp.formatting import error_line
    from vggexp.loggers.console import flush_stdout, print_text
    from vggexp.runs.data_source import pin_data
    from vggexp.sweep import expand, shown
    from vggexp.sweep.command import run_grid, run_search
    from vggexp.sweep.search_space import SearchPlan
    from vggexp.sweep.task import HydraTask, report_if_done, run_hydra, should_report_error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. Prints an expected error as one line on stderr."""
    try:
        rank_info()
    except ConfigError as error:  # no rank is known that could report the error for all
        print_error(error_line(str(error)))
        return error.exit_code
    try:
        with translate_os_errors():
            try:
                words = sys.argv[1:] if argv is None else argv
                return _run(parse_command(words, "--schema"))
            finally:
                flush_stdout()  # also what --version has printed
    except VggexpError as error:
        report_error(error, should_report_error)
        return error.exit_code
    except KeyboardInterrupt:
        clear_pending_interrupt()
        print_stopped("vggexp: stopped at once")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output has exited, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(command: Command) -> int:
    """Runs a command and returns its exit code."""
    if command.arguments.schema:
        if command.overrides:
            raise ConfigError(f"--schema: takes no overrides; leave out {command.overrides[0]}")
        from vggexp.config.json_schema import json_schema  # which no other command needs

        print_text(json.dumps(json_schema(), indent=1, ensure_ascii=False))
        return 0
    if any(getattr(command.arguments, flag) for flag in HYDRA_FLAGS):
        if command.arguments.hydra_help:
            shown.reject_own_overrides(command)
        if not (command.arguments.shell_completion or command.arguments.hydra_help):
            shown.check_composes(command)
            note_replaced_files()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = run_hydra(command)
        print_text(output.getvalue().removesuffix("\n"))
        return code
    outline = expand.compose_outline(command)
    if outline.is_sweep:
        return _run_sweep(command, outline)
    config = expand.run_config(command, outline)
    note_replaced_files()
    ranks = rank_info().size
    if ranks > 1 and config.device.processes not in (None, ranks):
        raise ConfigError(
            f"device.processes={config.device.processes}: {ranks} have been started; leave it out"
        )
    with cached_reads():
        if ranks == 1 and report_if_done(pin_data(config)):
            return 0
        task = HydraTask(first_words=expand.first_words(command, outline))
        return run_hydra(command, task=task)


def _run_sweep(command: Command, outline: expand.Outline) -> int:
    """Checks every job of a sweep, then runs the sweep."""
    sweep = expand.expand_sweep(command, outline)
    note_replaced_files()
    ranks = rank_info().size
    if ranks > 1:
        raise ConfigError(
            f"-m: each of the {ranks} ranks would run the whole sweep; "
            f"start it once, without torchrun or srun, with device.processes={ranks}"
        )
    first_words = expand.first_words(command, outline)
    if isinstance(sweep, SearchPlan):
        return run_search(command, sweep, first_words)
    return run_grid(command, sweep, first_words)


if __name__ == "__main__":
    sys.exit(main())
