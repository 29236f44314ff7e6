"""Measures a step by kind of operator: python -m benchmarks.operators [overrides].

Times each module alone, forward and backward, on the values that reach it in the network. The sum
over the modules of a kind stands beside the whole step and beside the time in which the machine's
own matrix product would do the step's multiply-adds.
"""

import statistics
import sys
from collections import defaultdict
from functools import partial

import torch
from torch import Tensor, nn

from vggexp.bench.layers import Part, time_part
from vggexp.bench.measure import (
    PRODUCT_SIZE,
    ROUNDS,
    full_batches,
    matrix_product,
    step_parts,
    time_rounds,
)
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.formatting import aligned_table
from vggexp.models.shapes import macs
from vggexp.runner import build, datasets
from vggexp.runner.hardware import DeviceSetup, setup_device
from vggexp.sweep.expand import compose_run

KINDS = {
    "convolution": nn.Conv2d,
    "batch norm": nn.BatchNorm2d,
    "ReLU": nn.ReLU,
    "pooling": nn.MaxPool2d,
    "linear": nn.Linear,
}


def split_into_modules(model: nn.Module, images: Tensor, setup: DeviceSetup) -> list[Part]:
    """Sends a batch through the network and returns each module of KINDS with its own input."""
    parts: list[Part] = []

    def add(kind: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = inputs[0].detach().clone()
        is_first = not parts
        gradient = torch.randn_like(output)
        parts.append(Part(kind, nn.Sequential(module), values, gradient, 1, 1 if is_first else 2))

    handles = []
    for module in model.modules():
        for kind, module_class in KINDS.items():
            if isinstance(module, module_class):
                handles.append(module.register_forward_hook(partial(add, kind)))
        if isinstance(module, nn.ReLU):
            module.inplace = False  # the input of a module that is timed alone must stay
    with torch.no_grad(), setup.autocast():
        model(images)
    for handle in handles:
        handle.remove()
    return parts


def main() -> None:
    config = compose_run(parse_command(sys.argv[1:]))
    setup = setup_device(config)
    batches = datasets.build_loaders(config, setup.device).train
    batch = next(iter(batches.train(0)))
    images, _ = batch
    state = build.build_state(config, setup, batches.batches_per_epoch)
    stream = full_batches(batches, len(images))
    whole = step_parts(state, build.train_settings(config, setup), stream, batch)["step"]
    step = statistics.median(time_rounds({"step": whole}, 4 * ROUNDS, setup.device)["step"])
    model = build.build_model(config).to(setup.device).train()
    if config.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    seconds: defaultdict[str, float] = defaultdict(float)
    for part in split_into_modules(model, images, setup):
        rounds = [sum(time_part(part, setup)) for _ in range(4 * ROUNDS)]
        seconds[part.name] += statistics.median(rounds)
    product = matrix_product(setup.precision, PRODUCT_SIZE, setup.device)
    product_seconds = min(time_rounds({"product": product}, ROUNDS, setup.device)["product"])
    step_macs = 3 * macs(layers(config)) * len(images)
    ideal = step_macs / PRODUCT_SIZE**3 * product_seconds
    rows = [("", "ms", "of the step")]
    rest = step - sum(seconds.values())
    names = {**seconds, "rest": rest, "whole step": step, "matrix product": ideal}
    for name, value in names.items():
        rows.append((name, f"{1000 * value:.2f}", f"{value / step:.2f}"))
    print("\n".join(aligned_table(rows, left_columns=1)))


if __name__ == "__main__":
    main()
