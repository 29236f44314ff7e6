"""Command `vggexp.verify`: trains the last steps of a run again and compares the weights."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp import cli
from vggexp.errors import CheckpointError, VggexpError
from vggexp.formatting import error_line
from vggexp.loggers.console import print_text
from vggexp.runs import data_root
from vggexp.runs.directory import require_run
from vggexp.runs.records import load_config

if TYPE_CHECKING:
    from vggexp.verify.replay import VerifyResult

DESCRIPTION = """\
python -m vggexp.verify RUN [--data FOLDER] [--json]:
runs the last stretch again and compares it bit by bit.

Starts from the last checkpoint but one, trains to the last one, and compares weights, optimizer,
moving average and metrics. --data gives the place of data that was moved. Exit code 0: identical.
Exit code 4: not identical; the first tensor or number that differs is printed. Nothing in RUN is
changed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        parser = cli.make_parser("vggexp.verify", DESCRIPTION)
        parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
        parser.add_argument("--data", type=Path, metavar="FOLDER", help=data_root.HELP)
        arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
        require_run(arguments.run)
        data_root.locate_data(load_config(arguments.run), arguments.run, arguments.data)
        # This imports torch, so it comes after the check of the command.
        from vggexp.verify.replay import replay

        result = replay(arguments.run, arguments.data)
        print_text(json.dumps(asdict(result)) if arguments.json else format_result(result))
    except VggexpError as error:
        cli.print_error(error_line(str(error)))
        return error.exit_code
    return 0 if result.identical else CheckpointError.exit_code


def format_result(result: "VerifyResult") -> str:
    stretch = f"steps {result.from_step} to {result.to_step} run again"
    if result.identical:
        tensors = f"{result.tensors} tensors equal bit for bit"
        return f"identical: {stretch}, {tensors}  {result.run}"
    return f"not identical: {stretch}, {result.first_difference} differs  {result.run}"


if __name__ == "__main__":
    sys.exit(main())
