"""Command `vggexp.verify`: trains the last steps of a run again and compares the weights."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp import cli
from vggexp.errors import CheckpointError
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
Exit code 4: not identical; the first tensor or number that differs is printed. 6: memory. Nothing
in RUN is changed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    result: VerifyResult | None = None

    def verify() -> str:
        nonlocal result
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        result = _replay(arguments.run, arguments.data)
        return json.dumps(asdict(result)) if arguments.json else format_result(result)

    code = cli.run(verify)
    is_different = result is not None and not result.identical
    return CheckpointError.exit_code if code == 0 and is_different else code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser("vggexp.verify", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data_root.HELP)
    return parser.parse_intermixed_args(argv)


def _replay(folder: Path, data: Path | None) -> "VerifyResult":
    require_run(folder)
    data_root.locate_data(load_config(folder), folder, data)
    # This imports torch, so it comes after the check of the command.
    from vggexp.system import memory
    from vggexp.verify.replay import replay

    with memory.oom_as_resource_error(f"in verifying {folder}"):
        return replay(folder, data)


def format_result(result: "VerifyResult") -> str:
    stretch = f"steps {result.from_step} to {result.to_step} run again"
    if result.identical:
        tensors = f"{result.tensors} tensors equal bit for bit"
        return f"identical: {stretch}, {tensors}  {result.run}"
    return f"not identical: {stretch}, {result.first_difference} differs  {result.run}"


if __name__ == "__main__":
    sys.exit(main())
