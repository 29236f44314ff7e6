"""python -m vggexp.evaluate RUN [options] [--json]: a finished run on its test set, as the VGG paper evaluates.

  single   one window of the training size in the middle of each picture; the run's own test
  dense    the linear layers as convolutions over the whole picture, the score map averaged
  crops    5x5 windows of the training size, at even distances over the picture
  both     the mean of dense and crops

Each view gives a soft-max, and their mean is the answer. --scales are what the shorter side of a picture is scaled to,
by default the training size S alone. The paper takes S-32, S and S+32 for S=256, and 256, 384 and 512 after training
with scale jitter; its windows are of 224. A picture that is as large as the window leaves room for one crop only, a
smaller one gets a black border. --flip shows each view mirrored too: for photographs, not for digits. --with RUN2
averages the soft-max of several runs of the same test images.

Told are accuracy, top 5, loss, the calibration error (15 bins of confidence) and each class's accuracy and confusions.
Written into RUN/evaluations: a JSON file, and events that TensorBoard shows below the run's name. Exit code 0: done.
2: no such directory, or a scale too small for dense. 3: data missing. 4: a run that is not finished, or of other data.
5: scores that are not finite. 6: memory or disk. 130: stopped by Ctrl-C; nothing has been written.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.cli import NOTHING_WRITTEN, run_command
from vggexp.config.derived import input_spec, spatial_ops
from vggexp.errors import CheckpointError, ConfigError
from vggexp.models import shapes
from vggexp.runs import directory
from vggexp.runs.records import RunRecord, load_config, read_run, test_fingerprint

MODES = ("single", "dense", "crops", "both")
MAX_PIXELS = 4096  # pixels, as data.resize
MAX_SCALES = 32  # scales


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv), NOTHING_WRITTEN)


def _answer(argv: Sequence[str]) -> str:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as outputs/NAME")
    parser.add_argument(
        "--mode", choices=MODES, default="single", help="how each picture is seen (single)"
    )
    parser.add_argument(
        "--scales",
        type=scales,
        metavar="N,N,...",
        help="pixels of the shorter side (training size)",
    )
    parser.add_argument("--flip", action="store_true", help="each view mirrored too")
    parser.add_argument(
        "--with",
        type=Path,
        nargs="+",
        default=[],
        dest="others",
        metavar="RUN2",
        help="runs to fuse",
    )
    arguments = parser.parse_intermixed_args(argv)
    folders = [arguments.run, *arguments.others]
    directory.require_run(*folders)
    check(folders, arguments.mode, arguments.scales)
    from vggexp.evaluate.evaluation import (
        EvalOptions,
        evaluate_runs,
        format_report,  # imports torch, once the command is known to be right
    )

    result = evaluate_runs(folders, EvalOptions(arguments.mode, arguments.scales, arguments.flip))
    return json.dumps(result) if arguments.json else format_report(result)


def scales(text: str) -> tuple[int, ...]:
    """`88,96,104`: each once, rising."""
    words = text.split(",")
    if (
        not all(word.strip().isdecimal() and 1 <= int(word) <= MAX_PIXELS for word in words)
        or len(words) > MAX_SCALES
    ):
        raise argparse.ArgumentTypeError(
            f"{text}: wanted 1 to {MAX_SCALES} sizes of 1..{MAX_PIXELS} pixels, as 88,96,104"
        )
    return tuple(sorted({int(word) for word in words}))


def check(folders: Sequence[Path], mode: str, scales: Sequence[int] | None) -> None:
    """Raises ConfigError or CheckpointError where the runs cannot be evaluated so, or not together."""
    if twice := [
        folder
        for place, folder in enumerate(folders)
        if folder.resolve() in _resolved(folders[:place])
    ]:
        raise ConfigError(f"--with {twice[0]}: given twice, and would count twice")
    runs = [read_run(folder) for folder in folders]
    if unfinished := [f"{run.folder} is {run.state}" for run in runs if run.state != "finished"]:
        raise CheckpointError(f"{', '.join(unfinished)}; only finished runs can be evaluated")
    if mode in ("dense", "both") and scales:
        for folder in folders:
            _check_map(folder, min(scales))
    for other in runs[1:]:
        _check_data(runs[0], other)


def _resolved(folders: Sequence[Path]) -> list[Path]:
    return [folder.resolve() for folder in folders]


def _check_map(folder: Path, scale: int) -> None:
    """The last map must be as large as in training at least."""
    config = load_config(folder)
    size = input_spec(config).size
    layers = spatial_ops(config)
    least = shapes.minimum_size(layers, shapes.feature_map_sizes(size, layers)[-1])
    if scale < least:
        raise ConfigError(
            f"--scales {scale}: too small for the dense network of {folder}, which was trained at {size} px; "
            f"at least {least}"
        )


def _check_data(first: RunRecord, other: RunRecord) -> None:
    names = [run.config.get("data.name") for run in (first, other)]
    if names[0] != names[1]:
        why = f"{names[1]}, not {names[0]}"
    elif test_fingerprint(first) != test_fingerprint(other):
        why = f"another test set of {names[0]}"
    else:
        return
    raise CheckpointError(f"--with {other.folder}: not the test images of {first.folder} ({why})")


if __name__ == "__main__":
    sys.exit(main())
