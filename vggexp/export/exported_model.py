"""Opens a run or an exported file as one function from images to logits.

vggexp.predict and the parity check of an export use it.
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggexp.config.derived import input_spec
from vggexp.data.transforms import Preprocess
from vggexp.errors import CheckpointError
from vggexp.formatting import one_line
from vggexp.runner.load import LoadedRun, load_run
from vggexp.system import memory
from vggexp.training import checks
from vggexp.training.checkpoint_schema import MAX_CHANNELS, MAX_ITEMS
from vggexp.training.checks import Check

KEY = "vggexp"  # metadata key in ONNX files and state dicts
EXTRA = "vggexp.json"  # the same metadata as an extra file in a .pt2 archive
MAX_METADATA_BYTES = 1 << 26
MAX_SIDE = 4096  # pixels, the same as for data.resize
OPTIONAL_METADATA = {"run", "vggexp", "weights_sha256"}  # where a file comes from


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata that every exported file carries as JSON, with the names of the fields as keys.

    Args:
        run: name of the run directory.
        vggexp: version of vggexp that wrote the file.
        preprocess: whether the file contains resizing, scaling and normalization.
        side: height and width in pixels of the images that the file takes.
        size: pixels that images are resized to: the shorter side first, then a center crop.
        mean: per channel, of pixels in 0..1; None without normalization.
        std: per channel, of pixels in 0..1; None without normalization.
    """

    run: str
    vggexp: str
    weights_sha256: str | None
    preprocess: bool
    channels: int
    side: int
    size: int
    mean: list[float] | None
    std: list[float] | None
    classes: list[str]


class ExportedModel(NamedTuple):
    """A network as a function of raw images.

    Args:
        image_size: height and width in pixels of the images that `logits` takes.
        logits: maps uint8 [N, channels, image_size, image_size] on the CPU to float32 [N, classes].
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    logits: Callable[[Tensor], Tensor]


def open_model(path: Path) -> ExportedModel:
    """Opens a run directory, or a .onnx or .pt2 file of vggexp.export. Raises CheckpointError."""
    if path.is_dir():
        return from_run(load_run(path))
    if path.suffix == ".onnx":
        return from_onnx(path)
    return from_torch(path)


def from_run(run: LoadedRun) -> ExportedModel:
    spec = input_spec(run.config)
    return ExportedModel(
        run.classes, spec.channels, spec.size, lambda images: run.model(run.preprocess(images))
    )


def from_onnx(path: Path) -> ExportedModel:
    """Opens an ONNX file with onnxruntime on the CPU. Raises CheckpointError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; onnxruntime raises them as well
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types
        raise CheckpointError(f"{path}: onnxruntime cannot read it: {one_line(error)}") from error
    metadata = _parse_metadata(path, session.get_modelmeta().custom_metadata_map.get(KEY))

    def compute(images: Tensor) -> Tensor:
        name = session.get_inputs()[0].name
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return _guard_logits(path, from_metadata(metadata, compute))


def from_torch(path: Path) -> ExportedModel:
    """Opens a .pt2 file of torch.export. Raises CheckpointError.

    A program of torch.export can run any code, so open only files that you trust.
    """
    metadata = _parse_metadata(path, _read_extra_file(path))
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many types
        raise CheckpointError(f"{path}: torch.export cannot read it: {one_line(error)}") from error
    return _guard_logits(path, from_metadata(metadata, program.module()))


def _guard_logits(path: Path, model: ExportedModel) -> ExportedModel:
    """Returns the model with a `logits` that raises CheckpointError if the file computes none."""

    def logits(images: Tensor) -> Tensor:
        try:
            outputs = model.logits(images)
        except Exception as error:  # onnxruntime and torch raise many types
            if memory.is_out_of_memory(error):
                raise
            raise CheckpointError(f"{path}: fails on images: {one_line(error)}") from error
        shape = (len(images), len(model.classes))
        if not isinstance(outputs, Tensor) or outputs.shape != shape:
            raise CheckpointError(
                f"{path}: gives {checks.describe(outputs)}, expected logits {list(shape)}"
            )
        return outputs

    return model._replace(logits=logits)


def from_metadata(metadata: ModelMetadata, model: Callable[[Tensor], Tensor]) -> ExportedModel:
    """Adds to `model` the preprocessing that the exported file does not contain."""
    classes = tuple(metadata.classes)
    if metadata.preprocess:
        return ExportedModel(classes, metadata.channels, metadata.side, model)
    mean = None if metadata.mean is None else torch.tensor(metadata.mean)
    std = None if metadata.std is None else torch.tensor(metadata.std)
    preprocess = Preprocess(metadata.size, mean, std)
    return ExportedModel(
        classes, metadata.channels, metadata.side, lambda images: model(preprocess(images))
    )


def _read_extra_file(path: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{EXTRA}"):
                    return archive.open(name).read(MAX_METADATA_BYTES)
            return None
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not a program of torch.export: {one_line(error)}"
        ) from error


def _parse_metadata(path: Path, text: str | bytes | None) -> ModelMetadata:
    """Raises CheckpointError if vggexp.export did not write the file."""
    try:
        content = json.loads(text or "null")
    except (ValueError, RecursionError):
        content = None
    names = [field.name for field in fields(ModelMetadata)]
    if not isinstance(content, dict) or not set(names) - OPTIONAL_METADATA <= content.keys():
        raise CheckpointError(
            f"{path}: no {KEY!r} entry in its metadata; give a file that vggexp.export wrote"
        )
    values: dict[str, Any] = {name: content.get(name) for name in names}
    try:
        checks.fields(METADATA)("", values)
    except ValueError as error:
        raise CheckpointError(f"{path}: not the metadata of an export: {error}") from error
    return ModelMetadata(**values)


def _flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        checks.refuse(name, value, "true or false")


def _statistics(lowest: float) -> Check:
    """Returns a check for the mean or std of each channel, which may be null."""
    by_channel = checks.list_of(checks.number(lowest), 1, MAX_CHANNELS)

    def check(name: str, value: Any) -> None:
        if value is not None:
            by_channel(name, value)

    return check


METADATA: dict[str, Check] = {
    "preprocess": _flag,
    "channels": checks.whole(1, MAX_CHANNELS),
    "side": checks.whole(1, MAX_SIDE),
    "size": checks.whole(1, MAX_SIDE),
    "mean": _statistics(-1e6),
    "std": _statistics(1e-6),
    "classes": checks.list_of(checks.text, 2, MAX_ITEMS),
}
