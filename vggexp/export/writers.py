"""Writes a finished run as a file for torch.export, ONNX or torchvision, and checks the file."""

import contextlib
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from vggexp import __version__
from vggexp.config.derived import input_spec, tested_views
from vggexp.config.schema import Config, ImageFiles
from vggexp.data.transforms import Preprocess, resize_matrices
from vggexp.errors import ConfigError
from vggexp.export import torchvision_code
from vggexp.export.exported_model import (
    EXTRA,
    KEY,
    ExportedModel,
    ModelMetadata,
    from_metadata,
    from_onnx,
    from_torch,
)
from vggexp.export.parity import ParityResult, check_parity, format_parity
from vggexp.formatting import format_bytes, printable, shorten
from vggexp.loggers.console import Console
from vggexp.models.torchvision import load_torchvision_weights, save_torchvision_weights
from vggexp.runner import build
from vggexp.runner.load import LoadedRun, build_loaded_run, load_tested_checkpoint
from vggexp.runs.data_root import locate_data
from vggexp.runs.directory import read_result
from vggexp.runs.predictions import Predictions
from vggexp.system import memory
from vggexp.system.files import atomic_path, make_inner_dir, os_error_as_resource_error

# protobuf's limit for one message, less 16 MiB for the graph
MAX_ONNX_WEIGHT_BYTES = (1 << 31) - (1 << 24)
MAX_CLASSES_LISTED = 10
MAX_CLASS_CHARS = 30  # characters of a class name


@dataclass(frozen=True)
class ExportResult:
    """An exported file.

    Args:
        bytes: size of the file.
        load: lines of Python that load the file and compute logits.
        parity: comparison with the run; None with --unchecked.
        seconds: time to write and check the file.
    """

    file: str
    format: str
    bytes: int
    metadata: ModelMetadata
    load: list[str]
    parity: ParityResult | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that --json prints: the metadata stands beside the other keys."""
        return {
            "file": self.file,
            "format": self.format,
            "bytes": self.bytes,
            **asdict(self.metadata),
            "load": self.load,
            "parity": None if self.parity is None else asdict(self.parity),
            "seconds": self.seconds,
        }


class ModelWithPreprocessing(nn.Module):
    """Computes `model(preprocess(images))` with operators that every runtime has.

    Maps uint8 [N, C, size, size] to logits [N, classes], as the CPU computes them.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, image_size: int):
        super().__init__()
        self.model = model
        self.resizes = image_size != preprocess.size
        rows, columns = resize_matrices(image_size, image_size, preprocess.size)
        mean = torch.zeros(1) if preprocess.mean is None else preprocess.mean
        std = torch.ones(1) if preprocess.std is None else preprocess.std
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("scale", (255 * std)[:, None, None])
        self.register_buffer("shift", (mean / std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.resizes:
            images = (images @ self.columns + 0.5).floor()
            images = (self.rows @ images + 0.5).floor()
        return self.model(images / self.scale - self.shift)


def export_run(
    folder: Path,
    file_format: str,
    preprocess: bool,
    path: Path,
    expected: Predictions | None,
    data: Path | None = None,
) -> ExportResult:
    """Writes a finished run to one file, loads the file back and compares it with the run.

    Args:
        folder: the run directory.
        file_format: torch, onnx or torchvision.
        preprocess: whether the file contains resizing, scaling and normalization.
        path: the file to write, whole or not at all.
        expected: predictions.npz of the run; None skips the comparison.
        data: folder of the run's data; None: data.root of the run.

    Raises:
        VggexpError: of every kind.
    """
    start = monotonic()
    config, checkpoint = load_tested_checkpoint(folder)
    config = locate_data(config, folder, data)
    run = build_loaded_run(config, checkpoint, folder)
    metadata = make_metadata(folder, run, preprocess)
    if expected is not None:
        _check_comparable(folder, config, metadata)
    parity = None
    with (
        memory.oom_as_resource_error(f"in exporting {folder}"),
        _atomic_output(path, folder) as part,
    ):
        _write(file_format, part, run, metadata)
        size = part.stat().st_size
        model = _load_back(file_format, part, run, metadata)
        if expected is not None:
            console = Console(None, sys.stderr)
            parity = check_parity(model, run, folder, checkpoint, expected, console)
    return ExportResult(
        file=str(path),
        format=file_format,
        bytes=size,
        metadata=metadata,
        load=_loading_code(file_format, config, str(path)),
        parity=parity,
        seconds=monotonic() - start,
    )


def _check_comparable(folder: Path, config: Config, metadata: ModelMetadata) -> None:
    """Raises ConfigError if the file cannot see the views of the run's own test."""
    views = tested_views(config)
    if views.shift and metadata.side != metadata.size:
        raise ConfigError(
            f"--preprocess: {folder} was tested{views.suffix} at {metadata.size} px, "
            f"and the file would resize from {metadata.side} px; "
            "leave it out, or add --unchecked to export without the comparison"
        )


def make_metadata(folder: Path, run: LoadedRun, preprocess: bool) -> ModelMetadata:
    """Returns what the exported file records about itself."""
    spec = input_spec(run.config)
    mean = run.preprocess.mean
    std = run.preprocess.std
    return ModelMetadata(
        run=folder.resolve().name,
        vggexp=__version__,
        weights_sha256=read_result(folder).get("weights_sha256"),
        preprocess=preprocess,
        channels=spec.channels,
        side=_dataset_image_size(run.config) if preprocess else spec.size,
        size=spec.size,
        mean=None if mean is None else mean.tolist(),
        std=None if std is None else std.tolist(),
        classes=list(run.classes),
    )


def _dataset_image_size(config: Config) -> int:
    """Returns the height and width of the data set's images before data.resize.

    The images of a folder have any size. vggexp resizes and crops them when it reads them, so
    their size is the network's.
    """
    data = config.data
    if not isinstance(data, ImageFiles):
        data = replace(data, resize=None)
    return input_spec(replace(config, data=data)).size


@contextlib.contextmanager
def _atomic_output(path: Path, run: Path) -> Iterator[Path]:
    """Yields a path as `atomic_path` does, and creates a folder inside the run directory first.

    Raises:
        ResourceError: the file cannot be written, or that folder is a link.
    """
    with os_error_as_resource_error(path, "written"):
        if path.is_relative_to(run):
            make_inner_dir(path.parent)
        with atomic_path(path) as part:
            yield part


def _write(file_format: str, part: Path, run: LoadedRun, metadata: ModelMetadata) -> None:
    model = run.model
    dtype = torch.float32
    if metadata.preprocess:
        model = ModelWithPreprocessing(run.model, run.preprocess, metadata.side)
        dtype = torch.uint8
    model = model.eval()
    example = torch.zeros(2, metadata.channels, metadata.side, metadata.side, dtype=dtype)
    if file_format == "torch":
        _write_torch(part, model, example, metadata)
    elif file_format == "onnx":
        _write_onnx(part, model, example, metadata)
    else:
        _write_weights(part, model, metadata)


def _write_torch(part: Path, model: nn.Module, example: Tensor, metadata: ModelMetadata) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
        node.meta.pop("nn_module_stack", None)  # names of vggexp's classes
    content = io.BytesIO()  # torch kills the process if it writes to a full disk itself
    torch.export.save(program, content, extra_files={EXTRA: json.dumps(asdict(metadata))})
    part.write_bytes(content.getbuffer())


def _write_onnx(part: Path, model: nn.Module, example: Tensor, metadata: ModelMetadata) -> None:
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weight_bytes > MAX_ONNX_WEIGHT_BYTES:
        raise ConfigError(
            f"--format onnx: the weights have {weight_bytes:,} bytes, "
            f"and one file holds {MAX_ONNX_WEIGHT_BYTES:,}; choose --format torch"
        )
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "N"},),
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of this machine
    program.model.metadata_props[KEY] = json.dumps(asdict(metadata))
    program.save(part, external_data=False)


def _write_weights(part: Path, model: Any, metadata: ModelMetadata) -> None:
    weights: Any = OrderedDict(save_torchvision_weights(model))  # a dict accepts no attributes
    weights._metadata = {KEY: asdict(metadata)}  # load_state_dict(strict=True) ignores this key
    content = io.BytesIO()
    torch.save(weights, content)
    part.write_bytes(content.getbuffer())


def _load_back(
    file_format: str, part: Path, run: LoadedRun, metadata: ModelMetadata
) -> ExportedModel:
    """Loads the file as its reader will."""
    if file_format == "torch":
        return from_torch(part)
    if file_format == "onnx":
        return from_onnx(part)
    model = build.build_model(run.config).eval()
    load_torchvision_weights(model, torch.load(part, weights_only=True))
    return from_metadata(metadata, model)


def _loading_code(file_format: str, config: Config, path: str) -> list[str]:
    """Returns lines of Python that load the file without vggexp."""
    if file_format == "torchvision":
        return [*torchvision_code.torchvision_code(config, path), "logits = net(images)"]
    if file_format == "torch":
        return [
            "import torch",
            f"net = torch.export.load({path!r}).module()",
            "logits = net(images)",
        ]
    return [
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession({path!r})",
        "logits = session.run(None, {'images': images})[0]  # images: a numpy array",
    ]


def format_report(result: ExportResult) -> str:
    """Returns text for a terminal: the file, its input and output, parity, and loading code."""
    metadata = result.metadata
    shape = f"[N, {metadata.channels}, {metadata.side}, {metadata.side}]"
    parity = "not compared (--unchecked)"
    if result.parity is not None:
        parity = format_parity(result.parity)
    rows = [
        ("file", f"{result.file}  ({format_bytes(result.bytes, 'B')})"),
        ("takes", f"images {shape}, {_describe_pixels(metadata)}"),
        ("gives", f"logits [N, {len(metadata.classes)}]: {_list_classes(metadata.classes)}"),
        ("parity", parity),
    ]
    rows += [("load", line) for line in result.load]
    return "\n".join(f"{name:<8} {printable(text)}" for name, text in rows)


def _describe_pixels(metadata: ModelMetadata) -> str:
    if metadata.preprocess:
        return "uint8, pixels of 0..255"
    if metadata.mean is None or metadata.std is None:
        return "float32, pixels / 255"
    mean = ", ".join(f"{value:.6g}" for value in metadata.mean)
    std = ", ".join(f"{value:.6g}" for value in metadata.std)
    return f"float32, (pixels / 255 - mean) / std with mean {mean} and std {std}"


def _list_classes(classes: list[str]) -> str:
    names = [shorten(name, MAX_CLASS_CHARS) for name in classes[:MAX_CLASSES_LISTED]]
    text = ", ".join(names)
    if len(classes) > MAX_CLASSES_LISTED:
        text += f", and {len(classes) - MAX_CLASSES_LISTED} more"
    return text
