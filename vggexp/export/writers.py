"""A network with its preprocessing in front, from operators that every runtime has."""

import contextlib
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from vggexp import __version__
from vggexp.config.derived import input_spec
from vggexp.config.schema import Config, ImageFolder
from vggexp.data.transforms import Preprocess, resize_matrices
from vggexp.errors import ConfigError, ResourceError
from vggexp.export import parity, torchvision_code
from vggexp.export.exported_model import EXTRA, KEY, ExportedModel, from_file, from_onnx, from_torch
from vggexp.formatting import shorten
from vggexp.loggers.console import Console
from vggexp.models.torchvision import load_torchvision_weights, save_torchvision_weights
from vggexp.runner import build
from vggexp.runner.load import LoadedRun, build_loaded_run, load_tested_checkpoint
from vggexp.runs.directory import read_result
from vggexp.runs.predictions import Predictions
from vggexp.system import memory
from vggexp.system.files import atomic_path

ONNX_BYTES = (1 << 31) - (1 << 24)  # protobuf's limit of a message, with room for the graph
MAX_CLASSES_LISTED = 10
MAX_CLASS_CHARS = 30  # classes that are named, and characters of a name

Result = dict[str, Any]


def export_run(
    folder: Path, kind: str, preprocess: bool, path: Path, kept: Predictions | None
) -> Result:
    """Writes the file. kept: what it must answer; None: it is not asked. Raises every VggexpError."""
    begun = monotonic()
    config, saved = load_tested_checkpoint(folder)
    run = build_loaded_run(config, saved)
    about = facts(folder, run, preprocess)
    with memory.oom_as_resource_error(f"in exporting {folder}"), _atomic_output(path) as part:
        _write(kind, part, run, about)
        size = part.stat().st_size
        model = _load_back(kind, part, run, about)
        console = Console(None, sys.stderr)
        compared = None if kept is None else parity.parity(model, run, folder, saved, kept, console)
    loading = _loading_code(kind, config, str(path))
    seconds = monotonic() - begun
    result = {"file": str(path), "format": kind, "bytes": size, **about}
    return {**result, "load": loading, "parity": compared, "seconds": seconds}


def _loading_code(kind: str, config: Config, path: str) -> list[str]:
    """Python that loads the file, where vggexp need not be."""
    if kind == "torchvision":
        return [*torchvision_code.torchvision_code(config, path), "logits = net(images)"]
    if kind == "torch":
        return [
            "import torch",
            f"net = torch.export.load({path!r}).module()",
            "logits = net(images)",
        ]
    made = ["import onnxruntime", f"session = onnxruntime.InferenceSession({path!r})"]
    return [*made, "logits = session.run(None, {'images': images})[0]  # images: a numpy array"]


def facts(folder: Path, run: LoadedRun, preprocess: bool) -> Result:
    """What the file says of itself. side: of the pictures it takes; size: what they are resized to, the shorter side
    first and then the square in the middle; mean and std: of pixels of 0..1."""
    mean, std = (
        None if value is None else value.tolist()
        for value in (run.preprocess.mean, run.preprocess.std)
    )
    given = input_spec(run.config)
    return {
        "run": folder.resolve().name,
        "vggexp": __version__,
        "weights_sha256": read_result(folder).get("weights_sha256"),
        "preprocess": preprocess,
        "channels": given.channels,
        "side": _stored_side(run.config) if preprocess else given.size,
        "size": given.size,
        "mean": mean,
        "std": std,
        "classes": list(run.classes),
    }


def _stored_side(config: Config) -> int:
    """The side of a picture of the data set; a folder's are of any size, and are cut and resized as they are read."""
    data = (
        config.data if isinstance(config.data, ImageFolder) else replace(config.data, resize=None)
    )
    return input_spec(replace(config, data=data)).size


@contextlib.contextmanager
def _atomic_output(path: Path) -> Iterator[Path]:
    """`files.written`, in a folder that need not exist. Raises ResourceError."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as part:
            yield part
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write(kind: str, part: Path, run: LoadedRun, about: Result) -> None:
    module = (
        ModelWithPreprocessing(run.model, run.preprocess, about["side"])
        if about["preprocess"]
        else run.model
    )
    dtype = torch.uint8 if about["preprocess"] else torch.float32
    example = torch.zeros(2, about["channels"], about["side"], about["side"], dtype=dtype)
    write = {"torch": _write_torch, "onnx": _write_onnx, "torchvision": _write_weights}[kind]
    write(part, module.eval(), example, about)


def _write_torch(part: Path, module: nn.Module, example: Tensor, about: Result) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        for key in (
            "stack_trace",
            "nn_module_stack",
        ):  # paths of this machine, names of our classes
            node.meta.pop(key, None)
    content = io.BytesIO()  # torch writing to a full disk takes the process along
    torch.export.save(program, content, extra_files={EXTRA: json.dumps(about)})
    part.write_bytes(content.getbuffer())


def _write_onnx(part: Path, module: nn.Module, example: Tensor, about: Result) -> None:
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    if weights > ONNX_BYTES:
        raise ConfigError(
            f"--format onnx: {weights:,} bytes of weights, one file holds {ONNX_BYTES:,}; choose torch"
        )
    names: Any = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_shapes": ({0: "N"},),
    }
    program = torch.onnx.export(module, (example,), dynamo=True, verbose=False, **names)
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of this machine
    program.model.metadata_props[KEY] = json.dumps(about)
    program.save(part, external_data=False)


def _write_weights(part: Path, module: Any, example: Tensor, about: Result) -> None:
    weights: Any = OrderedDict(save_torchvision_weights(module))  # a plain dict takes no attribute
    weights._metadata = {KEY: about}  # which a strict load passes over
    content = io.BytesIO()
    torch.save(weights, content)
    part.write_bytes(content.getbuffer())


def _load_back(kind: str, part: Path, run: LoadedRun, about: Result) -> ExportedModel:
    """The file as its reader will have it."""
    if kind != "torchvision":
        return {"torch": from_torch, "onnx": from_onnx}[kind](part)
    model = build.build_model(run.config).eval()
    load_torchvision_weights(model, torch.load(part, weights_only=True))
    return from_file(about, model)


def format_report(result: Result) -> str:
    """For a terminal: what was written, what it takes and gives, and how well it answers."""
    compared = result["parity"]
    channels = result["channels"]
    side = result["side"]
    rows = [
        ("file", f"{result['file']}  ({result['bytes'] / 1e6:.1f} MB)"),
        ("takes", f"images [N, {channels}, {side}, {side}], {_pixels(result)}"),
        ("gives", f"logits [N, {len(result['classes'])}]: {_listed(result['classes'])}"),
        ("parity", parity.format_parity(compared) if compared else "not compared (--unchecked)"),
        *(("load", line) for line in result["load"]),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in rows)


def _pixels(result: Result) -> str:
    if result["preprocess"]:
        return "uint8, pixels of 0..255"
    if result["mean"] is None:
        return "float32, pixels / 255"
    mean, std = (", ".join(f"{value:.6g}" for value in result[key]) for key in ("mean", "std"))
    return f"float32, (pixels / 255 - mean) / std with mean {mean} and std {std}"


def _listed(classes: list[str]) -> str:
    more = (
        f", and {len(classes) - MAX_CLASSES_LISTED} more"
        if len(classes) > MAX_CLASSES_LISTED
        else ""
    )
    return ", ".join(shorten(name, MAX_CLASS_CHARS) for name in classes[:MAX_CLASSES_LISTED]) + more


class ModelWithPreprocessing(nn.Module):
    """uint8 [N, C, side, side] -> logits [N, classes]: `net(preprocess(images))` as the CPU computes it."""

    rows: Tensor
    columns: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, side: int):
        super().__init__()
        self.model = model
        self.resizes = side != preprocess.size
        rows, columns = resize_matrices(side, side, preprocess.size)
        mean = torch.zeros(1) if preprocess.mean is None else preprocess.mean
        std = torch.ones(1) if preprocess.std is None else preprocess.std
        scale = (255 * std)[:, None, None]
        shift = (mean / std)[:, None, None]
        for name, tensor in {
            "rows": rows,
            "columns": columns,
            "scale": scale,
            "shift": shift,
        }.items():
            self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.resizes:
            images = (images @ self.columns + 0.5).floor()
            images = (self.rows @ images + 0.5).floor()
        return self.model(images / self.scale - self.shift)
