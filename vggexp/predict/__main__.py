"""python -m vggexp.predict RUN IMAGE... [--top K] [--json]: what a trained network takes pictures for.

RUN is a run directory, or a file of vggexp.export: .onnx (asked by onnxruntime; pip install 'vggexp[export]') or .pt2.
A .pt2 is a program: open only those whose origin you trust. IMAGE is a picture of any size and mode, or a folder of
them; each is turned upright, resized by its shorter side and cut to the square in the middle, made grey where the
network is, and normalised as in training. The network computes on the processor, in fp32.

A line for each picture: file, label and probability, with --top the K likeliest. A file that is no picture is refused
before the first line; one that turns out damaged is named at the end, after the lines of the others. Exit code 0: done.
2: wrong usage, no such run or file, or a missing package. 3: pictures missing or damaged. 4: a run or an exported file
that cannot be read. 5: scores that are not finite. 6: memory. 130: stopped by Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vggexp import cli
from vggexp.cli import run_command
from vggexp.data.image_folder import expand_image_paths
from vggexp.errors import CheckpointError, ConfigError, DataError
from vggexp.loggers.console import Console
from vggexp.runs import directory
from vggexp.runs.records import read_run

FILES = (".onnx", ".pt2")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv), "stopped by Ctrl-C")


def _answer(argv: Sequence[str]) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, or a .onnx or .pt2 file"
    )
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="a picture, or a folder of them"
    )
    parser.add_argument(
        "--top", type=_count, default=1, metavar="K", help="how many labels are told (1)"
    )
    asked = parser.parse_intermixed_args(argv)
    _check(asked.run)
    images = expand_image_paths(asked.images)
    from vggexp.predict.predict import (
        predict_images,
    )  # imports torch, once the command is known to be right

    console = Console(None)
    seen = predict_images(asked.run, images, asked.top)
    told = _as_json(console, asked.run, seen) if asked.json else _as_lines(console, seen)
    if told:
        raise DataError("; ".join(told))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number of 1 or more")
    return int(text)


def _check(path: Path) -> None:
    """Raises ConfigError, CheckpointError where it is neither a run with weights nor an exported file."""
    if path.is_file():
        if path.suffix not in FILES:
            raise ConfigError(
                f"{path}: give a run directory, or a file of vggexp.export that ends in .onnx or .pt2"
            )
        if path.suffix == ".onnx" and find_spec("onnxruntime") is None:
            raise ConfigError(f"{path}: needs onnxruntime; pip install 'vggexp[export]'")
        return
    if not path.exists():
        raise ConfigError(f"{path}: no such run directory or exported file")
    directory.require_run(path)
    if not any((path / "checkpoints").glob("*.pt")):
        raise CheckpointError(f"{path}: holds no checkpoint")
    if (state := read_run(path).state) != "finished":
        print(f"warning: {path} is {state}: its newest checkpoint is asked", file=sys.stderr)


def _as_lines(console: Console, seen: Iterable[dict[str, Any]]) -> list[str]:
    """Prints each as it comes; returns what could not be decoded."""
    errors = []
    for one in seen:
        if "error" in one:
            errors.append(one["error"])
            continue
        labels = (f"{guess['label']} {guess['probability']:.4f}" for guess in one["top"])
        console.line(f"{one['image']}  {', '.join(labels)}")
    return errors


def _as_json(console: Console, run: Path, seen: Iterable[dict[str, Any]]) -> list[str]:
    every = list(seen)
    console.line(json.dumps({"run": str(run), "predictions": every}))
    return [one["error"] for one in every if "error" in one]


if __name__ == "__main__":
    sys.exit(main())
