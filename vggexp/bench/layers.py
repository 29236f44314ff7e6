"""Times each layer of a network on a batch, alone, forward and backward."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vggexp.bench.measure import (
    PRODUCT_SIZE,
    ROUNDS,
    cycle,
    matrix_product,
    synchronize,
    time_rounds,
)
from vggexp.config.derived import layers
from vggexp.config.schema import Config
from vggexp.models.shapes import Layer
from vggexp.runner import build, datasets
from vggexp.runner.hardware import DeviceSetup, setup_device
from vggexp.system.files import atomic_path, os_error_as_resource_error
from vggexp.training.cuda_graphs import WARMUP_CALLS
from vggexp.training.loop import step_settings
from vggexp.training.step import NonFiniteGuard, optimizer_step

TRACED_STEPS = 3


@dataclass(frozen=True)
class LayerSpeed:
    """Medians for one batch. A layer is a convolution or linear layer with what follows it."""

    layer: str
    macs: int  # multiply-adds of one image's forward pass
    forward_ms: float
    backward_ms: float
    # Share of the rate of the matrix product in the same number format.
    forward_of_product: float
    backward_of_product: float


@dataclass(frozen=True)
class Part:
    """A layer's modules, and what reaches it in the network."""

    name: str
    modules: nn.Sequential
    inputs: Tensor
    gradient: Tensor  # of the output
    macs: int  # of the batch, forward
    backward_macs: int


def time_layers(
    config: Config, product_size: int = PRODUCT_SIZE, rounds: int = ROUNDS
) -> list[LayerSpeed]:
    """Times the layers one after the other, several rounds. Blocks are not fused on a GPU.

    Args:
        product_size: rows and columns of the matrices whose product is the limit.
    """
    device_setup = setup_device(config)
    device = device_setup.device
    images, _ = next(iter(datasets.build_checked_loaders(config, device).train.train(0)))
    model = build.build_model(config).to(device)
    if config.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    parts = list(split_into_parts(model.train(), images, layers(config), device_setup))
    product = matrix_product(device_setup.precision, product_size, device)
    products = time_rounds({"product": product}, rounds, device)["product"]
    macs_per_second = product_size**3 / min(products)
    seconds: dict[str, list[tuple[float, float]]] = {part.name: [] for part in parts}
    for round_index in range(rounds + 1):
        for part in parts:
            times = time_part(part, device_setup)
            if round_index > 0:
                seconds[part.name].append(times)
    return [_speed(part, seconds[part.name], len(images), macs_per_second) for part in parts]


def _speed(
    part: Part, seconds: Sequence[tuple[float, float]], images: int, macs_per_second: float
) -> LayerSpeed:
    forward = statistics.median(times[0] for times in seconds)
    backward = statistics.median(times[1] for times in seconds)
    return LayerSpeed(
        layer=part.name,
        macs=part.macs // images,
        forward_ms=1000 * forward,
        backward_ms=1000 * backward,
        forward_of_product=part.macs / forward / macs_per_second,
        backward_of_product=part.backward_macs / backward / macs_per_second,
    )


def split_into_parts(
    model: nn.Module, images: Tensor, rows: Sequence[Layer], device_setup: DeviceSetup
) -> Iterator[Part]:
    """Sends a batch through the network and yields each layer with its own input.

    The first layer computes no gradient of its input, so its backward pass has half the operations.
    """
    weighted = [row for row in rows if row.kind in ("conv", "linear")]
    values = images
    for row, modules in zip(weighted, group_modules(model), strict=True):
        inputs = values.detach()
        with torch.no_grad(), device_setup.autocast():
            values = modules(inputs)
        macs = row.macs * len(images)
        backward_macs = macs if row is weighted[0] else 2 * macs
        yield Part(row.name, modules, inputs, torch.randn_like(values), macs, backward_macs)


def group_modules(model: nn.Module) -> list[nn.Sequential]:
    """Returns each convolution and linear layer with the modules that follow it."""
    groups: list[list[nn.Module]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            groups.append([module])
        elif not list(module.children()):
            groups[-1].append(module)
    return [nn.Sequential(*group) for group in groups]


def time_part(part: Part, device_setup: DeviceSetup) -> tuple[float, float]:
    """Returns the seconds of the forward and of the backward pass."""
    needs_gradient = part.backward_macs > part.macs
    inputs = part.inputs.requires_grad_(needs_gradient)
    synchronize(device_setup.device)
    started = time.perf_counter()
    with device_setup.autocast():
        output = part.modules(inputs)
    synchronize(device_setup.device)
    middle = time.perf_counter()
    output.backward(part.gradient)
    synchronize(device_setup.device)
    ended = time.perf_counter()
    part.modules.zero_grad(set_to_none=True)
    inputs.grad = None
    return middle - started, ended - middle


def write_trace(config: Config, path: Path) -> None:
    """Writes a trace of a few steps, with their data, for chrome://tracing or Perfetto.

    Raises:
        ResourceError: the file cannot be written.
    """
    device_setup = setup_device(config)
    device = device_setup.device
    batches = datasets.build_checked_loaders(config, device).train
    state = build.build_state(config, device_setup, batches.batches_per_epoch)
    settings = build.train_settings(config, device_setup)
    guard = NonFiniteGuard(device)
    stream = cycle(batches)

    def step() -> None:
        with torch.profiler.record_function("data"):
            batch = next(stream)
        step_cfg = step_settings(state, settings, guard)
        with torch.profiler.record_function("forward and backward"):
            loss, _ = settings.forward_backward(state.model, batch, step_cfg)
        with torch.profiler.record_function("optimizer"):
            optimizer_step(state.model, state.optimizer, loss, 0, step_cfg)

    for _ in range(WARMUP_CALLS + 1):  # the last one records a CUDA graph, if the batches are full
        step()
    with torch.profiler.profile() as profile:
        for _ in range(TRACED_STEPS):
            step()
    with os_error_as_resource_error(f"--trace {path}", "written"), atomic_path(path) as part:
        profile.export_chrome_trace(str(part))
