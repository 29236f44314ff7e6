"""python -m vggexp.compare RUN RUN... [--different-data] [--json]: what differs, and whether the scores do.

Finished runs whose configuration differs only in `seed` are one group: repeats of a setting. The same seed again begins
another group, so `compare before/* after/*` compares two states of the code. Told are what differs, each group's mean
test accuracy with its spread, and for each pair of groups (of more than four groups, each with the best by validation):

  paired t   where both have the same seeds: Student's t-test of the differences
  Welch t    where they have not
  McNemar    on the images that only one of two networks gets right: the only test for one run each. Of several seeds
             an image counts for the group that gets it right with more of them.

The t-tests ask whether the settings differ, on this test set, beyond the chance of the seed. McNemar's test asks
whether these trained networks differ beyond the chance of the images. p is corrected by Holm's method where there are
several pairs; intervals are of 95 % each, not corrected. "Not distinguishable" is not "equal": see the interval.

Runs of different data (training or test files by their SHA-256, or test labels) are refused with exit code 4;
--different-data compares their means all the same, with a warning, and without McNemar's test where the test images
are not the same. Exit code 0: compared, whatever the outcome. 2: fewer than two runs, or no such directory.
4: not the folder of a run, not finished, or damaged.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.cli import run_command
from vggexp.runs import directory


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> str:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "run", type=Path, nargs="*", metavar="RUN", help="a run directory, as outputs/NAME"
    )
    parser.add_argument(
        "--different-data", action="store_true", help="also runs of different data, with a warning"
    )
    arguments = parser.parse_intermixed_args(argv)
    directory.require_run(*arguments.run)
    from vggexp.compare import (
        comparison,
        render,  # import scipy, once the command is known to be right
    )

    found = comparison.compare(comparison.read_tested_run(arguments.run), arguments.different_data)
    return (
        json.dumps(render.data(found), default=str)
        if arguments.json
        else render.format_comparison(found)
    )


if __name__ == "__main__":
    sys.exit(main())
