"""Command `vggexp.export`: exports a finished run to a file that works without vggexp."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vggexp import cli
from vggexp.cli import NOTHING_WRITTEN
from vggexp.errors import ConfigError, ResourceError
from vggexp.export import torchvision_code
from vggexp.runs import data_root, directory
from vggexp.runs.continuation import check_states
from vggexp.runs.predictions import read
from vggexp.runs.records import load_config, read_run
from vggexp.system.files import check_output_file

DESCRIPTION = """python -m vggexp.export RUN --format FORMAT [options] [--json]:
export a finished run to a file that works without vggexp.

  torch        a program of torch.export (.pt2): torch.export.load(FILE).module()(images)
  onnx         one ONNX file (.onnx), for onnxruntime and others (pip install 'vggexp[export]')
  torchvision  a state dict (.pth) for torchvision's VGG of the same depth; prints code to load it

The file computes in fp32 and accepts any number of images: float32 [N, C, S, S], resized and
normalized as in the run. It returns logits [N, classes]. With --preprocess the file resizes,
scales and normalizes: it then accepts uint8 [N, C, H, W], pixels of 0..255 at the size of the
data. The file stores the class names and a description of its input under the key `vggexp` (ONNX:
metadata; torch: vggexp.json; torchvision: the state dict's _metadata).

The file is loaded again and evaluated on the whole test set. The probabilities are compared with
the run's predictions.npz, and those of the first batch with the network on this machine. If
rounding in the run's number format does not explain a difference, the command fails and leaves no
file. --data gives the place of data that was moved. --unchecked skips the comparison, which needs
the data.

The file is written to RUN/exports, or to --out, whole or not at all. Exit code 0: done. 2: wrong
usage, a missing package, or a network that torchvision does not have. 3: data missing. 4: the run
is not finished or has other data, or the file does not predict what the run predicted. 6: memory
or disk. 130: stopped by Ctrl-C; nothing was written.
"""

SUFFIX = {"torch": ".pt2", "onnx": ".onnx", "torchvision": ".pth"}
# packages that a format needs and that are not dependencies of vggexp
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
FOLDER = "exports"  # in the run directory


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _export(sys.argv[1:] if argv is None else argv), NOTHING_WRITTEN)


def _export(argv: Sequence[str]) -> str:
    parser = cli.make_parser("vggexp.export", DESCRIPTION)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, such as outputs/NAME"
    )
    parser.add_argument("--format", choices=SUFFIX, required=True, help="format of the file")
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="include resizing, scaling and normalization in the file",
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="do not compare with the run's predictions"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data_root.HELP)
    arguments = parser.parse_intermixed_args(argv)
    directory.require_run(arguments.run)
    path = arguments.out or arguments.run / FOLDER / _file_name(arguments)
    check_arguments(arguments, path)
    expected = None if arguments.unchecked else read(arguments.run)
    # Imports torch, so this import follows the checks of the command.
    from vggexp.export.writers import export_run, format_report

    result = export_run(
        arguments.run, arguments.format, arguments.preprocess, path, expected, arguments.data
    )
    if arguments.json:
        return json.dumps(result.to_dict())
    return format_report(result)


def _file_name(arguments: argparse.Namespace) -> str:
    name = arguments.run.resolve().name
    if arguments.preprocess:
        name += "-preprocess"
    return name + SUFFIX[arguments.format]


def check_arguments(arguments: argparse.Namespace, path: Path) -> None:
    """Raises ConfigError, CheckpointError or ResourceError if `path` cannot be written."""
    packages = PACKAGES.get(arguments.format, ())
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--format {arguments.format}: needs {', '.join(missing)}; pip install 'vggexp[export]'"
        )
    check_states([read_run(arguments.run)], "exported")
    data_root.locate_data(load_config(arguments.run), arguments.run, arguments.data)
    if arguments.format == "torchvision":
        _check_torchvision(arguments)
    if os.fsencode(path).decode(errors="replace") != str(path):  # torch and onnxruntime fail
        raise ConfigError(f"{path}: not UTF-8 text; choose another file with --out FILE")
    if arguments.out is not None:
        _check_out(arguments.out, arguments.format)
    elif not os.access(arguments.run, os.W_OK):
        raise ResourceError(f"{arguments.run}: not writable; choose another file with --out FILE")


def _check_torchvision(arguments: argparse.Namespace) -> None:
    if arguments.preprocess:
        raise ConfigError(
            "--preprocess: a state dict holds weights and no program; choose --format torch or onnx"
        )
    reason = torchvision_code.unsupported_reason(load_config(arguments.run).arch)
    if reason:
        raise ConfigError(f"--format torchvision: {reason}; choose --format torch or onnx")


def _check_out(path: Path, file_format: str) -> None:
    suffix = SUFFIX[file_format]
    if path.suffix != suffix:
        raise ConfigError(f"--out {path}: a file of --format {file_format} ends in {suffix}")
    if path.is_dir():
        raise ConfigError(
            f"--out {path}: is a directory; give a file, such as {path / ('model' + suffix)}"
        )
    check_output_file("--out", path)


if __name__ == "__main__":
    sys.exit(main())
