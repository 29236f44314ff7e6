"""Command `vggexp.evaluate`: evaluates finished runs on their test or validation images."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.cli import NOTHING_WRITTEN
from vggexp.config.derived import input_spec, spatial_ops
from vggexp.data.image_views import ImageViews, recorded_views
from vggexp.errors import CheckpointError, ConfigError
from vggexp.formatting import SPLIT_NAMES, format_value
from vggexp.loggers.console import Console
from vggexp.models import shapes
from vggexp.runs import data_root, directory
from vggexp.runs.continuation import check_states
from vggexp.runs.records import RunRecord, fingerprint, load_config, read_run, test_fingerprint
from vggexp.runs.sweeps import runs_in_state

DESCRIPTION = """python -m vggexp.evaluate RUN [options] [--json]:
evaluate a run on its test set with the methods of the VGG paper.

  single   one center crop of the training size; the run's own test evaluation (of a run with
           train.test_flip or train.test_shift: with --flip or --shift)
  dense    the linear layers as convolutions over the whole image, averaged over the score map
  crops    a grid of 5x5 crops of the training size, evenly spaced over the image
  both     the mean of dense and crops

The network computes a softmax for each view, and the prediction is the mean over all views.
--scales sets the sizes that the shorter side of an image is scaled to, by default the training
size S alone. The paper uses S-32, S and S+32 for S=256, and 256, 384 and 512 after training with
scale jitter, with crops of 224. An image of exactly the crop size has only one crop. A smaller
image gets a black border. --flip adds the mirror image of each view: use it for photographs, not
for digits. --shift N adds each view moved by N pixels up, down, left and right, black outside: use
it for small images that fill the training size. --with RUN2 averages the softmax of several
runs over the same images; the folder of a sweep stands for its other runs in the state of RUN,
finished or paused. --split val evaluates the validation images in place of the test images.
--checkpoint STEP evaluates the checkpoint of that step in RUN/checkpoints in place of the tested
weights. --data gives the place of data that was moved; it has to be the data that the runs were
tested on.

Reports accuracy, top-5 accuracy, loss, calibration error (15 bins of confidence), per-class
accuracy and the confusion matrix. Writes to RUN/evaluations a JSON file, and events that
TensorBoard shows below the run's name. Of a paused run it takes the newest checkpoint, and names
the epoch in the file's name. Exit code 0: done. 2: no such directory, checkpoint or validation
images, or a scale too small for dense. 3: data missing. 4: a run is neither finished nor paused, or
has other data. 5: probabilities are not finite. 6: memory or disk. 130: stopped by Ctrl-C; nothing
was written.
"""

MODES = ("single", "dense", "crops", "both")
SPLITS = ("test", "val")
STATES = ("finished", "paused")  # of the runs that can be evaluated
VAL_KEYS = ("data.val_fraction", "data.limit", "seed")  # choose the validation images
MAX_PIXELS = 4096  # pixels, the same as for data.resize
MAX_SCALES = 32  # scales
MAX_SHIFT = 100  # pixels, the same as for train.test_shift


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _evaluate(sys.argv[1:] if argv is None else argv), NOTHING_WRITTEN)


def _evaluate(argv: Sequence[str]) -> str:
    arguments = _make_parser().parse_intermixed_args(argv)
    folders = [arguments.run, *_other_runs(arguments.run, arguments.others)]
    directory.require_run(*folders)
    runs = check_runs(folders, arguments.mode, arguments.scales, arguments.split)
    if arguments.checkpoint is not None:
        _check_checkpoint(folders, arguments.checkpoint)
    for folder in folders:
        config = data_root.locate_data(load_config(folder), folder, arguments.data)
        if arguments.shift:
            _check_shift(folder, input_spec(config).size, arguments)
    _print_notes(runs, arguments)
    # Imports torch, so this import follows the checks of the command.
    from vggexp.evaluate.evaluation import EvalOptions, evaluate_runs, format_report

    options = EvalOptions(
        mode=arguments.mode,
        scales=arguments.scales,
        image_views=ImageViews(arguments.flip, arguments.shift),
        split=arguments.split,
        checkpoint=arguments.checkpoint,
        data=arguments.data,
    )
    result = evaluate_runs(folders, options)
    if arguments.json:
        return json.dumps({**result.to_dict(), "file": str(result.file)})
    return format_report(result)


def _make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("vggexp.evaluate", DESCRIPTION)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, such as outputs/NAME"
    )
    parser.add_argument(
        "--mode", choices=MODES, default="single", help="views of each image (default: single)"
    )
    parser.add_argument(
        "--scales",
        type=parse_scales,
        metavar="N,N,...",
        help="pixels of the shorter side (default: the training size)",
    )
    parser.add_argument("--flip", action="store_true", help="add the mirror image of each view")
    parser.add_argument(
        "--shift",
        type=parse_shift,
        default=0,
        metavar="N",
        help="add each view moved by N pixels up, down, left and right",
    )
    parser.add_argument(
        "--with",
        type=Path,
        nargs="+",
        default=[],
        dest="others",
        metavar="RUN2",
        help="runs to average with RUN",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="images to evaluate (default: test)"
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="step of a checkpoint of RUN (default: the tested weights)",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data_root.HELP)
    return parser


def _other_runs(folder: Path, others: Sequence[Path]) -> list[Path]:
    """Returns the runs to average with RUN: of a sweep all others in the state of RUN.

    Raises:
        ConfigError, CheckpointError: RUN cannot be evaluated, or a sweep has no such run.
    """
    if not others:
        return []
    directory.require_run(folder)
    run = read_run(folder)
    check_states([run], "evaluated", STATES)
    found = []
    for other in others:
        members = runs_in_state(other, run.state, cli.warn_left_out)
        if members != [other]:  # a sweep, which may hold RUN itself
            members = [member for member in members if member.resolve() != folder.resolve()]
        if not members:
            raise ConfigError(f"--with {other}: has no other run that is {run.state}")
        found += members
    return found


def parse_scales(text: str) -> tuple[int, ...]:
    """Parses `88,96,104`. Returns each size once, in ascending order."""
    parts = [part.strip() for part in text.split(",")]
    sizes = {int(part) for part in parts if part.isdecimal()}
    all_numbers = all(part.isdecimal() for part in parts)
    all_in_range = all(1 <= size <= MAX_PIXELS for size in sizes)
    if not all_numbers or not all_in_range or len(parts) > MAX_SCALES:
        raise argparse.ArgumentTypeError(
            f"{text}: expected 1 to {MAX_SCALES} sizes of 1..{MAX_PIXELS} pixels, such as 88,96,104"
        )
    return tuple(sorted(sizes))


def parse_shift(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SHIFT:
        raise argparse.ArgumentTypeError(f"{text}: expected 1..{MAX_SHIFT} pixels")
    return int(text)


def check_runs(
    folders: Sequence[Path], mode: str, scales: Sequence[int] | None, split: str = "test"
) -> list[RunRecord]:
    """Returns the runs.

    Raises:
        ConfigError, CheckpointError: the runs cannot be evaluated, or not together.
    """
    resolved = []
    for folder in folders:
        if folder.resolve() in resolved:
            raise ConfigError(f"--with {folder}: given twice, and would count twice")
        resolved.append(folder.resolve())
    runs = [read_run(folder) for folder in folders]
    check_states(runs, "evaluated", STATES)
    if mode in ("dense", "both") and scales:
        for folder in folders:
            _check_dense_scale(folder, min(scales))
    for run in runs:
        if split == "val" and not run.config.get("data.val_fraction"):
            raise ConfigError(f"--split val: {run.folder} has no validation images")
    for other in runs[1:]:
        _check_same_images(runs[0], other, split)
    return runs


def _print_notes(runs: Sequence[RunRecord], arguments: argparse.Namespace) -> None:
    """Prints on stderr which weights are not final, and which scores are not of the run's test."""
    is_test = arguments.split == "test" and arguments.mode == "single"
    evaluated = ImageViews(arguments.flip, arguments.shift)
    for run in runs:
        if arguments.checkpoint is None:
            cli.warn_newest_checkpoint(run)
        tested = recorded_views(run.config)
        if is_test and run.state == "finished" and tested.keys and evaluated != tested:
            reason = f"tested{tested.suffix} ({', '.join(tested.keys)})"
            line = f"note: {run.folder} was {reason}; give {tested.flags} to evaluate it so"
            Console(None, sys.stderr).line(line)


def _check_checkpoint(folders: Sequence[Path], step: int) -> None:
    """Raises ConfigError unless the only run has a checkpoint of this step."""
    folder = folders[0]
    if len(folders) > 1:
        raise ConfigError(f"--checkpoint {step}: a step of one run; leave out --with")
    paths = (folder / "checkpoints").glob("*.pt")
    steps = sorted(int(path.stem) for path in paths if path.stem.isdecimal())
    if step not in steps:
        existing = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"--checkpoint {step}: {folder}/checkpoints has {existing}")


def _check_dense_scale(folder: Path, scale: int) -> None:
    """Raises ConfigError if the last feature map would be smaller than in training."""
    config = load_config(folder)
    size = input_spec(config).size
    layers = spatial_ops(config)
    last_map_size = shapes.feature_map_sizes(size, layers)[-1]
    min_scale = shapes.minimum_size(layers, last_map_size)
    if scale < min_scale:
        raise ConfigError(
            f"--scales {scale}: too small for the dense network of {folder}, "
            f"which was trained at {size} px; at least {min_scale}"
        )


def _check_shift(folder: Path, size: int, arguments: argparse.Namespace) -> None:
    """Raises ConfigError if nothing would be left of an image; the run was trained at `size`."""
    sizes = [*(arguments.scales or [size])]
    if arguments.mode != "dense":
        sizes.append(size)
    if arguments.shift >= min(sizes):
        raise ConfigError(
            f"--shift {arguments.shift}: must be below the {min(sizes)} px that {folder} sees"
        )


def _check_same_images(first: RunRecord, other: RunRecord, split: str) -> None:
    if reason := _other_images(first, other, split):
        images = f"{SPLIT_NAMES[split]} images"
        raise CheckpointError(
            f"--with {other.folder}: not the {images} of {first.folder} ({reason})"
        )


def _other_images(first: RunRecord, other: RunRecord, split: str) -> str:
    """Returns why two runs have other images in a split; empty if the images are the same."""
    name = first.config.get("data.name")
    if other.config.get("data.name") != name:
        return f"{other.config.get('data.name')}, not {name}"
    if split == "test":
        same = test_fingerprint(first) == test_fingerprint(other)
        return "" if same else f"another test set of {name}"
    for key in VAL_KEYS:
        if other.config.get(key) != first.config.get(key):
            values = [format_value(run.config.get(key)) for run in (other, first)]
            return f"{key}={values[0]}, not {values[1]}"
    return "" if fingerprint(first) == fingerprint(other) else f"other images of {name}"


if __name__ == "__main__":
    sys.exit(main())
