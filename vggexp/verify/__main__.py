"""python -m vggexp.verify RUN [--json]: runs the last stretch again and compares it bit by bit.

Starts from the last checkpoint but one, trains to the last, and compares weights, optimizer and moving average.
Exit code 0: identical. 4: not, with the first tensor that differs. Nothing in RUN is changed.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from vggexp import cli
from vggexp.errors import CheckpointError, VggexpError
from vggexp.formatting import error_line


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = cli.parse_run_command(__doc__, sys.argv[1:] if argv is None else argv)
        from vggexp.verify.replay import (
            replay,
        )  # imports torch, once the command is known to be right

        verdict = replay(arguments.run)
    except VggexpError as error:
        print(error_line(str(error)), file=sys.stderr)
        return error.exit_code
    print(json.dumps(verdict) if arguments.json else format_result(verdict))
    return 0 if verdict["identical"] else CheckpointError.exit_code


def format_result(verdict: dict[str, Any]) -> str:
    stretch = f"steps {verdict['from_step']} to {verdict['to_step']} run again"
    if verdict["identical"]:
        return f"identical: {stretch}, {verdict['tensors']} tensors equal bit for bit  {verdict['run']}"
    return f"not identical: {stretch}, {verdict['first_difference']} differs  {verdict['run']}"


if __name__ == "__main__":
    sys.exit(main())
