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

from vggexp.config.derived import layers
from vggexp.config.schema import Config
from vggexp.loggers.console import Console
from vggexp.loggers.run_logger import RunLogger
from vggexp.models.shapes import macs
from vggexp.runner import build, datasets, hardware
from vggexp.runner.hardware import setup_device
from vggexp.system.signals import StopFlag
from vggexp.training.loop import Batches, TrainSettings, TrainState, add_throughput, train_epoch
from vggexp.training.step import NonFiniteGuard, optimizer_step
from vggexp.training.timer import PhaseTimer

PRODUCT_SIDE = 4096
ROUNDS = 5
RUNNER_STEPS = 5
PARTS = ("data", "forward", "forward+backward", "step")
PARTS_SHOWN = {"bf16": torch.bfloat16, "fp16": torch.float16}


def benchmark(config: Config) -> dict[str, Any]:
    """Images per second of each part, GFLOP/s of the matrix product and of the step, and the ratios of interest."""
    hardware = setup_device(config)
    data = datasets.build_loaders(config, hardware.device)
    state = build.build_state(config, hardware, data.train.batches_per_epoch)
    plan = build.train_settings(config, hardware)
    images, labels = next(iter(data.train.train(0)))
    seconds = time_rounds(parts(state, plan, hardware, data, images, labels), plan.device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    flops = (
        3 * 2 * macs(layers(config)) * len(images)
    )  # the backward pass takes twice as many as the forward pass
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
    state: TrainState,
    plan: TrainSettings,
    hardware: hardware.DeviceSetup,
    data: datasets.DataLoaders,
    images: Tensor,
    labels: Tensor,
) -> dict[str, Callable[[], object]]:
    """Each part as a call. All but `product` do one batch; `runner` does RUNNER_STEPS with data, loop and logging."""
    kind = PARTS_SHOWN.get(hardware.precision, torch.float32)
    square = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=plan.device, dtype=kind)
    batches = cycle(data.train)
    guard = NonFiniteGuard(plan.device)

    def step() -> None:
        loss, _ = plan.gradients(
            state.model,
            state.scaler,
            guard,
            images,
            labels,
            batch_size=plan.batch_size,
            micro_batches=state.micro_batches,
            label_smoothing=plan.label_smoothing,
            autocast=plan.autocast,
        )
        optimizer_step(state.model, state.optimizer, state.scaler, guard, 0, loss, plan.clip_norm)

    def forward(backward: bool) -> None:
        with torch.set_grad_enabled(backward), plan.autocast():
            logits = state.model(images)
        if backward:
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            state.optimizer.zero_grad(set_to_none=True)

    return {
        "product": lambda: torch.mm(square, square),
        "data": lambda: next(batches),
        "forward": partial(forward, False),
        "forward+backward": partial(forward, True),
        "step": step,
        "runner": partial(run_loop_steps, state, plan, cycle(data.train)),
    }


def run_loop_steps(state: TrainState, plan: TrainSettings, batches: Iterator[Any]) -> None:
    """The loop as a run has it, over RUNNER_STEPS batches that stand for an epoch."""
    clock = PhaseTimer(plan.device)
    with tempfile.TemporaryDirectory() as folder:
        watch = RunLogger(Path(folder), Console(Path(folder) / "run.log", io.StringIO()), 1, {}, [])
        state.batch = 0
        train_epoch(
            state,
            FirstBatches(batches),
            plan,
            clock,
            NonFiniteGuard(plan.device),
            watch,
            NullCheckpointer(),
            StopFlag(),
        )
        row = {"epoch": 1, "step": state.step, "lr": 0.0, **state.sums.read("train")}
        watch.epoch(row | add_throughput(clock.read(), state.sums.count))
        state.sums.reset()
        watch.tensorboard.close(True)


class FirstBatches:
    """The next RUNNER_STEPS batches as an epoch."""

    count = batches_per_epoch = RUNNER_STEPS

    def __init__(self, batches: Iterator[Any]):
        self.batches = batches

    def train(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return islice(self.batches, RUNNER_STEPS)


class NullCheckpointer:
    """No checkpoint is due."""

    def due(self) -> bool:
        return False

    def save(self, state: TrainState) -> None:
        raise NotImplementedError


def cycle(batches: Batches) -> Iterator[Any]:
    for epoch in count():
        yield from batches.train(epoch)


def time_rounds(
    calls: dict[str, Callable[[], object]], device: torch.device
) -> dict[str, list[float]]:
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
