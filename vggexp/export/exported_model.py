"""A run or an exported file as one function of pictures; for vggexp.predict and for the check of an export."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggexp.config.derived import input_spec
from vggexp.data.transforms import Preprocess
from vggexp.errors import CheckpointError
from vggexp.runner.load import LoadedRun, load_run

KEY = "vggexp"
EXTRA = "vggexp.json"  # where an exported file says what it is
MAX_METADATA_BYTES = 1 << 26  # bytes


class ExportedModel(NamedTuple):
    """`logits(images)`: float32 [N, classes]; images: uint8 [N, channels, side, side] on the CPU."""

    classes: tuple[str, ...]
    channels: int
    side: int
    logits: Callable[[Tensor], Tensor]


def open_model(path: Path) -> ExportedModel:
    """A run directory, or a .onnx or .pt2 file of vggexp.export. Raises CheckpointError."""
    if path.is_dir():
        return from_run(load_run(path))
    return from_onnx(path) if path.suffix == ".onnx" else from_torch(path)


def from_run(run: LoadedRun) -> ExportedModel:
    given = input_spec(run.config)
    return ExportedModel(
        run.classes, given.channels, given.size, lambda images: run.model(run.preprocess(images))
    )


def from_onnx(path: Path) -> ExportedModel:
    """Raises CheckpointError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types
        raise CheckpointError(f"{path}: onnxruntime cannot read it: {_one_line(error)}") from error
    facts = _read(path, session.get_modelmeta().custom_metadata_map.get(KEY))
    name = session.get_inputs()[0].name
    return from_file(
        facts, lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])
    )


def from_torch(path: Path) -> ExportedModel:
    """Raises CheckpointError. A program of torch.export can call what it likes: only for files that are trusted."""
    facts = _read(path, _extra(path))
    try:
        program = torch.export.load(path)
    except Exception as error:  # of many types
        raise CheckpointError(f"{path}: torch.export cannot read it: {_one_line(error)}") from error
    return from_file(facts, program.module())


def from_file(facts: Mapping[str, Any], run: Callable[[Tensor], Tensor]) -> ExportedModel:
    """run: from what the file takes to logits. facts: as `vggexp.export.writers.facts` writes them."""
    mean, std = (facts[key] and torch.tensor(facts[key]) for key in ("mean", "std"))
    prepare = Preprocess(facts["size"], mean, std)
    logits = run if facts["preprocess"] else lambda images: run(prepare(images))
    return ExportedModel(tuple(facts["classes"]), facts["channels"], facts["side"], logits)


def _extra(path: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(
                (name for name in archive.namelist() if name.endswith(f"/extra/{EXTRA}")), None
            )
            return archive.open(name).read(MAX_METADATA_BYTES) if name else None
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not a program of torch.export: {_one_line(error)}"
        ) from error


def _read(path: Path, text: str | bytes | None) -> dict[str, Any]:
    """What the file says of itself. Raises CheckpointError where it is not vggexp's."""
    try:
        facts = json.loads(text or "null")
        if {"classes", "channels", "side", "size", "mean", "std", "preprocess"} <= facts.keys():
            return facts
    except (ValueError, AttributeError, RecursionError):
        pass
    raise CheckpointError(
        f"{path}: does not say what it takes (no {KEY!r} among its metadata): not of vggexp.export"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
