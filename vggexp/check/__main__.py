"""Command `vggexp.check`: sanity checks of a configuration before it is trained."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp import cli
from vggexp.config import compose
from vggexp.errors import DivergedError
from vggexp.formatting import plural
from vggexp.loggers.console import print_text
from vggexp.runs.data_source import count_data
from vggexp.sweep import expand

if TYPE_CHECKING:
    from vggexp.check.checks import Finding

DESCRIPTION = """\
python -m vggexp.check [overrides] [--images FILE] [--json]: sanity checks before a run, in seconds.

Checks the images and their labels, the loss, signal and gradient at the initial weights, a few
steps with the configured optimizer, and whether a few images can be memorized. Ends with a forecast
of time, memory and disk. Nothing is written, except the file of --images: nine training images,
augmented as configured, with their labels.

Exit code 0: all is well; 5: something is wrong. 2: wrong configuration. 3: data missing or damaged.
6: memory, or the file of --images cannot be written.
"""
NAME_WIDTH = 19


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _check(sys.argv[1:] if argv is None else argv))


def _check(argv: Sequence[str]) -> str | None:
    command = compose.parse_command(argv, "--json", options=["--images"])
    if command.arguments.help:
        return DESCRIPTION
    config = expand.compose_run(command)
    config = count_data(config, config.data.download)
    cli.note_replaced_files()
    cli.require_one_process(config, "checked")
    # This imports torch, so it comes after the check of the command.
    from vggexp.check.checks import make_subject, run_checks, write_sheet
    from vggexp.system import memory

    with memory.oom_as_resource_error("in checking; a smaller data.batch_size needs less"):
        if command.arguments.images is not None:
            write_sheet(config, Path(command.arguments.images))
        findings = run_checks(make_subject(config))
        if command.arguments.json:
            found = list(findings)
            print_text(json.dumps({"findings": [asdict(finding) for finding in found]}))
        else:
            found = list(_print_each(findings))
    wrong = [finding.check for finding in found if finding.cure is not None]
    if wrong:
        raise DivergedError(f"{plural(len(wrong), 'check')} failed: {', '.join(wrong)}")
    return None


def _print_each(findings: Iterator["Finding"]) -> Iterator["Finding"]:
    """Prints a finding as soon as it is there."""
    for finding in findings:
        print_text(format_finding(finding))
        yield finding


def format_finding(finding: "Finding") -> str:
    verdict = "ok" if finding.cure is None else "wrong"
    line = f"{verdict:<7}{finding.check:<{NAME_WIDTH}}{finding.text}"
    return line if finding.cure is None else f"{line}: {finding.cure}"


if __name__ == "__main__":
    sys.exit(main())
