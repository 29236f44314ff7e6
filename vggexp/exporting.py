"""A finished run as a file for other programs; for vggexp.export."""

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

from vggexp import __version__, build, memory, parity
from vggexp.config import twin
from vggexp.config.rules import inputs
from vggexp.config.schema import Config, ImageFolder
from vggexp.errors import ConfigError, ResourceError
from vggexp.exported import EXTRA, KEY, Model, from_onnx, from_torch, of_file
from vggexp.files import written
from vggexp.models.prepared import Prepared
from vggexp.models.torchvision_names import load_torchvision_weights, save_torchvision_weights
from vggexp.notebook import LoadedRun, loaded, tested
from vggexp.predictions import Predictions
from vggexp.rundir import result_of
from vggexp.sinks.console import Console, clipped

ONNX_BYTES = (1 << 31) - (1 << 24)  # protobuf's limit of a message, with room for the graph
LISTED, LONGEST = 10, 30  # classes that are named, and characters of a name

Result = dict[str, Any]


def exported(folder: Path, kind: str, preprocess: bool, path: Path, kept: Predictions | None) -> Result:
    """Writes the file. kept: what it must answer; None: it is not asked. Raises every VggexpError."""
    begun = monotonic()
    config, saved = tested(folder)
    run = loaded(config, saved)
    about = facts(folder, run, preprocess)
    with memory.told(f"in exporting {folder}"), _made(path) as part:
        _write(kind, part, run, about)
        size = part.stat().st_size
        model, console = _reread(kind, part, run, about), Console(None, sys.stderr)
        compared = None if kept is None else parity.parity(model, run, folder, saved, kept, console)
    loading, seconds = _loading(kind, config, str(path)), monotonic() - begun
    result = {"file": str(path), "format": kind, "bytes": size, **about}
    return {**result, "load": loading, "parity": compared, "seconds": seconds}


def _loading(kind: str, config: Config, path: str) -> list[str]:
    """Python that loads the file, where vggexp need not be."""
    if kind == "torchvision":
        return [*twin.lines(config, path), "logits = net(images)"]
    if kind == "torch":
        return ["import torch", f"net = torch.export.load({path!r}).module()", "logits = net(images)"]
    made = ["import onnxruntime", f"session = onnxruntime.InferenceSession({path!r})"]
    return [*made, "logits = session.run(None, {'images': images})[0]  # images: a numpy array"]


def facts(folder: Path, run: LoadedRun, preprocess: bool) -> Result:
    """What the file says of itself. side: of the pictures it takes; size: what they are resized to, the shorter side
    first and then the square in the middle; mean and std: of pixels of 0..1."""
    mean, std = (None if value is None else value.tolist() for value in (run.preprocess.mean, run.preprocess.std))
    given = inputs(run.config)
    return {
        "run": folder.resolve().name, "vggexp": __version__, "weights_sha256": result_of(folder).get("weights_sha256"),
        "preprocess": preprocess, "channels": given.channels, "side": _held(run.config) if preprocess else given.size,
        "size": given.size, "mean": mean, "std": std, "classes": list(run.classes),
    }  # fmt: skip


def _held(config: Config) -> int:
    """The side of a picture of the data set; a folder's are of any size, and are cut and resized as they are read."""
    data = config.data if isinstance(config.data, ImageFolder) else replace(config.data, resize=None)
    return inputs(replace(config, data=data)).size


@contextlib.contextmanager
def _made(path: Path) -> Iterator[Path]:
    """`files.written`, in a folder that need not exist. Raises ResourceError."""
    try:
        path.parent.mkdir(exist_ok=True)
        with written(path) as part:
            yield part
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write(kind: str, part: Path, run: LoadedRun, about: Result) -> None:
    module = Prepared(run.net, run.preprocess, about["side"]) if about["preprocess"] else run.net
    dtype = torch.uint8 if about["preprocess"] else torch.float32
    example = torch.zeros(2, about["channels"], about["side"], about["side"], dtype=dtype)
    write = {"torch": _write_torch, "onnx": _write_onnx, "torchvision": _write_weights}[kind]
    write(part, module.eval(), example, about)


def _write_torch(part: Path, module: nn.Module, example: Tensor, about: Result) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack"):  # paths of this machine, names of our classes
            node.meta.pop(key, None)
    content = io.BytesIO()  # torch writing to a full disk takes the process along
    torch.export.save(program, content, extra_files={EXTRA: json.dumps(about)})
    part.write_bytes(content.getbuffer())


def _write_onnx(part: Path, module: nn.Module, example: Tensor, about: Result) -> None:
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    if weights > ONNX_BYTES:
        raise ConfigError(f"--format onnx: {weights:,} bytes of weights, one file holds {ONNX_BYTES:,}; choose torch")
    names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "N"},)}
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


def _reread(kind: str, part: Path, run: LoadedRun, about: Result) -> Model:
    """The file as its reader will have it."""
    if kind != "torchvision":
        return {"torch": from_torch, "onnx": from_onnx}[kind](part)
    net = build.network(run.config).eval()
    load_torchvision_weights(net, torch.load(part, weights_only=True))
    return of_file(about, net)


def told(result: Result) -> str:
    """For a terminal: what was written, what it takes and gives, and how well it answers."""
    compared, channels, side = result["parity"], result["channels"], result["side"]
    rows = [
        ("file", f"{result['file']}  ({result['bytes'] / 1e6:.1f} MB)"),
        ("takes", f"images [N, {channels}, {side}, {side}], {_pixels(result)}"),
        ("gives", f"logits [N, {len(result['classes'])}]: {_listed(result['classes'])}"),
        ("parity", parity.told(compared) if compared else "not compared (--unchecked)"),
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
    more = f", and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
    return ", ".join(clipped(name, LONGEST) for name in classes[:LISTED]) + more
