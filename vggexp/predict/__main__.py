"""Command `vggexp.predict`: classifies images with a trained network."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from vggexp import cli
from vggexp.data.image_folder import expand_image_paths, raise_together
from vggexp.errors import CheckpointError, ConfigError
from vggexp.formatting import printable
from vggexp.loggers.console import print_text
from vggexp.runs import directory
from vggexp.runs.records import read_run
from vggexp.system.files import os_error_as_resource_error

DESCRIPTION = """python -m vggexp.predict RUN IMAGE... [--top K] [--json]:
classify images with a trained network.

RUN is a run directory, or a file of vggexp.export: .onnx (needs onnxruntime; pip install
'vggexp[export]') or .pt2. A .pt2 file is a program: open only files from sources that you trust.
IMAGE is an image of any size and mode, or a folder of images. Each image is turned upright,
resized by its shorter side, center-cropped to a square, converted to gray if the network takes
gray images, and normalized as in training. The network computes on the CPU, in fp32. The
prediction is that of the image alone, also if the run was tested with mirror images or shifts
(train.test_flip, train.test_shift).

Prints a line for each image: file, label and probability; with --top K the K most probable
labels. A file that is missing, damaged or not an image is reported at the end, after the lines of
the other images. Exit code 0: done. 2: wrong usage, no such run or file, or a missing package.
3: images missing or damaged. 4: the run or exported file cannot be read. 5: probabilities are not
finite. 6: memory, or a permission is missing. 130: stopped by Ctrl-C.
"""

SUFFIXES = (".onnx", ".pt2")  # of exported files


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _predict(sys.argv[1:] if argv is None else argv))


def _predict(argv: Sequence[str]) -> None:
    parser = cli.make_parser("vggexp.predict", DESCRIPTION)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, or a .onnx or .pt2 file"
    )
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="an image, or a folder of images"
    )
    parser.add_argument(
        "--top", type=_parse_count, default=1, metavar="K", help="number of labels (default: 1)"
    )
    arguments = parser.parse_intermixed_args(argv)
    _check_model(arguments.run)
    paths = expand_image_paths(arguments.images)
    # Imports torch, so this import follows the checks of the command.
    from vggexp.predict.predict import Failed, ImagePrediction, predict_images

    predictions: Iterable[ImagePrediction | Failed]
    predictions = predict_images(arguments.run, paths, arguments.top)
    if arguments.json:
        predictions = list(predictions)
        objects = [prediction.to_dict() for prediction in predictions]
        print_text(json.dumps({"run": str(arguments.run), "predictions": objects}))
    errors = []
    for prediction in predictions:
        match prediction:
            case Failed():
                errors.append(prediction.error)
            case ImagePrediction() if not arguments.json:
                guesses = [f"{guess.label} {guess.probability:.4f}" for guess in prediction.top]
                print_text(printable(f"{prediction.image}  {', '.join(guesses)}"))
    raise_together(errors)


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 1 or more")
    return int(text)


def _check_model(path: Path) -> None:
    """Checks that a path is an exported file or a run, and can be read.

    Raises:
        ConfigError: the path is neither.
        CheckpointError: the run has no checkpoint.
        ResourceError: a permission is missing.
    """
    if os.path.isfile(path):
        if path.suffix not in SUFFIXES:
            raise ConfigError(
                f"{path}: give a run directory, or a file of vggexp.export ending in .onnx or .pt2"
            )
        if path.suffix == ".onnx" and find_spec("onnxruntime") is None:
            raise ConfigError(f"{path}: needs onnxruntime; pip install 'vggexp[export]'")
        with os_error_as_resource_error(path, "read"):
            open(path, "rb").close()
        return
    if directory.is_searchable(path) and not os.path.exists(path):
        raise ConfigError(f"{path}: no such run directory or exported file")
    directory.require_run(path)
    if not any((path / "checkpoints").glob("*.pt")):
        raise CheckpointError(f"{path}: contains no checkpoint")
    cli.warn_newest_checkpoint(read_run(path))


if __name__ == "__main__":
    sys.exit(main())
