"""How fast this machine runs a configuration, part by part, beside its own matrix product; for vggexp.bench."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp import build
from vggexp.clock import Clock
from vggexp.config.rules import layers
from vggexp.config.schema import Config
from vggexp.shapes import macs
from vggexp.signals import Stop
from vggexp.sinks.console import Console
from vggexp.step import Guard, update
from vggexp.train import Batches, Plan, State, one_epoch, rates
from vggexp.watch import Watch

PRODUCT_SIDE = 4096
ROUNDS = 5
RUNNER_STEPS = 5
PARTS = ("data", "forward", "forward+backward", "step")
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def speed(config: Config) -> dict[str, Any]:
    """Images per second of each part, GFLOP/s of the matrix product and of the step, and the ratios of interest."""
    hardware = build.hardware(config)
    data = build.data(config, hardware.device)
    state, plan = build.state(config, hardware, data.train.batches_per_epoch), build.plan(config, hardware)
    images, labels = next(iter(data.train.train(0)))
    seconds = measured(parts(state, plan, hardware, data, images, labels), plan.device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    flops = 3 * 2 * macs(layers(config)) * len(images)  # the backward pass takes twice as many as the forward pass
    product = 2 * PRODUCT_SIDE**3 / min(seconds["product"])
    return {
        "device": config.device.name,
        "precision": hardware.precision,
        "threads": hardware.threads,
        "batch_size": len(images),
        "images_per_second": {name: len(images) / median[name] for name in PARTS},
        "product_side": PRODUCT_SIDE,
        "product_gflops": product / 1e9,
        "step_gflops": flops / median["step"] / 1e9,
        "step_over_product": flops / median["step"] / product,
        "runner_over_step": median["runner"] / RUNNER_STEPS / median["step"],
    }


def parts(
    state: State, plan: Plan, hardware: build.Hardware, data: build.Datasets, images: Tensor, labels: Tensor
) -> dict[str, Callable[[], object]]:
    """Each part as a call. All but `product` do one batch; `runner` does RUNNER_STEPS with data, loop and logging."""
    kind = KINDS.get(hardware.precision, torch.float32)
    square = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=plan.device, dtype=kind)
    batches = endless(data.train)
    guard = Guard(plan.device)

    def step() -> None:
        loss, _ = plan.gradients(
            state.net, state.scaler, guard, images, labels, batch_size=plan.batch_size,
            micro_batches=state.micro_batches, label_smoothing=plan.label_smoothing, autocast=plan.autocast,
        )  # fmt: skip
        update(state.net, state.optimizer, state.scaler, guard, 0, loss, plan.clip_norm)

    def forward(backward: bool) -> None:
        with torch.set_grad_enabled(backward), plan.autocast():
            logits = state.net(images)
        if backward:
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            state.optimizer.zero_grad(set_to_none=True)

    return {
        "product": lambda: torch.mm(square, square),
        "data": lambda: next(batches),
        "forward": partial(forward, False),
        "forward+backward": partial(forward, True),
        "step": step,
        "runner": partial(runner, state, plan, endless(data.train)),
    }


def runner(state: State, plan: Plan, batches: Iterator[Any]) -> None:
    """The loop as a run has it, over RUNNER_STEPS batches that stand for an epoch."""
    clock = Clock(plan.device)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder), Console(Path(folder) / "run.log", io.StringIO()), 1, {}, [])
        state.batch = 0
        one_epoch(state, Few(batches), plan, clock, Guard(plan.device), watch, Never(), Stop())
        row = {"epoch": 1, "step": state.step, "lr": 0.0, **state.sums.read("train")}
        watch.epoch(row | rates(clock.read(), state.sums.count))
        state.sums.reset()
        watch.tensorboard.close(True)


class Few:
    """The next RUNNER_STEPS batches as an epoch."""

    count = batches_per_epoch = RUNNER_STEPS

    def __init__(self, batches: Iterator[Any]):
        self.batches = batches

    def train(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return islice(self.batches, RUNNER_STEPS)


class Never:
    """No checkpoint is due."""

    def due(self) -> bool:
        return False

    def save(self, state: State) -> None:
        raise NotImplementedError


def endless(batches: Batches) -> Iterator[Any]:
    for epoch in count():
        yield from batches.train(epoch)


def measured(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of ROUNDS calls of each part, taken in turn after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    return seconds
