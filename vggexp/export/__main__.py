"""python -m vggexp.export RUN --format FORMAT [options] [--json]: a finished run as a file that needs no vggexp.

  torch        a program of torch.export (.pt2): torch.export.load(FILE).module()(images)
  onnx         one ONNX file (.onnx), for onnxruntime and others (pip install 'vggexp[export]')
  torchvision  a state dict (.pth) for torchvision's VGG of the same depth; the lines that load it are printed

The file computes in fp32 and takes any number of images: float32 [N, C, S, S], resized and normalised as in the run,
and gives logits [N, classes]. --preprocess puts resizing, scaling and normalisation inside: it then takes uint8
[N, C, H, W], pixels of 0..255 at the size of the data. The names of the classes, and what it takes, stand in the file
under the key `vggexp` (ONNX: metadata; torch: vggexp.json; torchvision: the state dict's _metadata).

The written file is read back and asked about the whole test set: its probabilities are compared with the run's own
predictions.npz, and those of the first batch with the network here. A difference that the run's number format does not
explain is refused, and no file is left. --unchecked leaves out the comparison, which needs the data.

Written to RUN/exports, or to --out; whole or not at all. Exit code 0: done. 2: wrong usage, a missing package, or a
network that torchvision does not have. 3: data missing. 4: a run that is not finished, of other data, or a file that
does not answer as the run did. 6: memory or disk. 130: stopped by Ctrl-C; nothing has been written.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vggexp import cli
from vggexp.cli import NOTHING_WRITTEN, run_command
from vggexp.errors import CheckpointError, ConfigError, ResourceError
from vggexp.export import torchvision_code
from vggexp.runs import directory
from vggexp.runs.predictions import read
from vggexp.runs.records import load_config, read_run

SUFFIX = {"torch": ".pt2", "onnx": ".onnx", "torchvision": ".pth"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # beyond what every installation has
FOLDER = "exports"  # in the run directory


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv), NOTHING_WRITTEN)


def _answer(argv: Sequence[str]) -> str:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as outputs/NAME")
    parser.add_argument("--format", choices=SUFFIX, required=True, help="what to write")
    parser.add_argument("--preprocess", action="store_true", help="take pictures as they are")
    parser.add_argument(
        "--unchecked", action="store_true", help="do not compare with the run's predictions"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the file goes")
    asked = parser.parse_intermixed_args(argv)
    directory.require_run(asked.run)
    check(asked)
    kept = None if asked.unchecked else read(asked.run)
    from vggexp.export.writers import (
        export_run,
        format_report,  # imports torch, once the command is known to be right
    )

    path = asked.out or asked.run / FOLDER / _name(asked)
    result = export_run(asked.run, asked.format, asked.preprocess, path, kept)
    return json.dumps(result) if asked.json else format_report(result)


def _name(asked: argparse.Namespace) -> str:
    return (
        asked.run.resolve().name
        + ("-preprocess" if asked.preprocess else "")
        + SUFFIX[asked.format]
    )


def check(asked: argparse.Namespace) -> None:
    """Raises ConfigError, CheckpointError or ResourceError where the run cannot be exported so."""
    missing = [package for package in PACKAGES.get(asked.format, ()) if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--format {asked.format}: needs {', '.join(missing)}; pip install 'vggexp[export]'"
        )
    if (state := read_run(asked.run).state) != "finished":
        raise CheckpointError(f"{asked.run} is {state}; only finished runs can be exported")
    if asked.format == "torchvision":
        _check_twin(asked)
    if asked.out is not None:
        _check_out(asked.out, asked.format)
    elif not os.access(asked.run, os.W_OK):
        raise ResourceError(f"{asked.run}: cannot be written; choose another place with --out FILE")


def _check_twin(asked: argparse.Namespace) -> None:
    if asked.preprocess:
        raise ConfigError(
            "--preprocess: a state dict holds weights and no program; choose --format torch or onnx"
        )
    if why := torchvision_code.unsupported_reason(load_config(asked.run).arch):
        raise ConfigError(f"--format torchvision: {why}; choose --format torch or onnx")


def _check_out(path: Path, kind: str) -> None:
    if path.suffix != SUFFIX[kind]:
        raise ConfigError(f"--out {path}: a file of --format {kind} ends in {SUFFIX[kind]}")
    if path.is_dir():
        raise ConfigError(
            f"--out {path}: is a directory; give the file, as {path / ('model' + SUFFIX[kind])}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: no such directory: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ResourceError(f"--out {path}: {path.parent} cannot be written")


if __name__ == "__main__":
    sys.exit(main())
