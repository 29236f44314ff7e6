"""Command `vggexp.compare`: compares finished runs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.errors import CheckpointError
from vggexp.runs import directory
from vggexp.runs.records import without_neighbors
from vggexp.runs.sweeps import name_sweeps, runs_in_state

DESCRIPTION = """python -m vggexp.compare RUN RUN... [--different-data] [--json]:
lists the differences between finished runs and tests whether their accuracies differ.

Runs whose configurations differ only in `seed` form one group: repeats of one setting. A repeated
seed begins another group, so `compare before/* after/*` compares two states of the code. Prints
the differences, each group's mean test accuracy with its spread, and a test for each pair of
groups. With more than four groups, each is tested against the best by validation accuracy.

  paired t   if both groups have the same seeds: Student's t-test of the differences
  Welch t    otherwise
  McNemar    on the images that only one of two groups classifies correctly; the only test if each
             group has one run. With several seeds, an image counts for the group that classifies
             it correctly with more of them.

The t-tests answer whether the settings differ, on this test set, by more than the chance of the
seed. McNemar's test answers whether these trained networks differ by more than the chance of the
images. With several pairs, p is corrected by Holm's method. Each interval is of 95 % and not
corrected. "Not distinguishable" does not mean "equal": see the interval.

Runs of different data are refused with exit code 4. Data is different if the SHA-256 of a training
or test file differs, or the test labels do. --different-data compares the means of such runs, with
a warning. If the test images are not the same, McNemar's test is left out.

The folder of a sweep, as outputs/sweeps/NAME, stands for its finished runs. A line on stderr
gives the number of runs that are not finished, such as those that sweep.halving has stopped.

A run that may not be read is named on stderr and left out, if two others remain. The files of a
report, README.md and the folder `sweeps` are passed over, so `compare outputs/*` works.

Exit codes: 0 if the runs were compared, whatever the result. 2 for fewer than two runs, or if a
directory does not exist. 4 if a directory is not a run, or the run is not finished or is damaged.
6 if a permission is missing. 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _compare(sys.argv[1:] if argv is None else argv))


def _compare(argv: Sequence[str]) -> str:
    parser = cli.make_parser("vggexp.compare", DESCRIPTION)
    parser.add_argument(
        "run", type=Path, nargs="*", metavar="RUN", help="a run directory, for example outputs/NAME"
    )
    parser.add_argument(
        "--different-data",
        action="store_true",
        help="compare runs of different data too, with a warning",
    )
    arguments = parser.parse_intermixed_args(argv)
    given = without_neighbors(arguments.run)
    runs = []
    for path in given:
        runs += runs_in_state(path, "finished", cli.warn_left_out)
    folders = _leave_out_closed(runs)
    for folder in folders:
        if advice := name_sweeps(folder):
            raise CheckpointError(f"{folder}: {directory.NO_CONFIG}{advice}")
    directory.require_run(*folders)
    from vggexp.compare import comparison, render  # import scipy: only after the arguments pass

    tested = comparison.read_tested_runs(folders)
    result = comparison.compare(tested, arguments.different_data)
    if arguments.json:
        return json.dumps(render.to_dict(result), default=str)
    return render.format_comparison(result)


def _leave_out_closed(folders: Sequence[Path]) -> Sequence[Path]:
    """Returns the folders that may be read, if there are two of them or more; else all."""
    readable = [folder for folder in folders if directory.is_searchable(folder)]
    if len(readable) < 2:
        return folders
    for folder in folders:
        if folder not in readable:
            cli.warn_left_out(f"{folder}: {directory.CLOSED}")
    return readable


if __name__ == "__main__":
    sys.exit(main())
