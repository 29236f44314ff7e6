"""Measures the speed of a configuration, part by part, and of the machine's own matrix product."""

import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import torch

from vggexp.config.derived import layers
from vggexp.config.schema import Config
from vggexp.loggers.console import Console
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.run_logger import RunLogger
from vggexp.models.shapes import macs
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.system.signals import StopFlag
from vggexp.training.loop import (
    Batches,
    NullCheckpointer,
    TrainLoop,
    TrainSettings,
    TrainState,
    step_settings,
    train_epoch,
)
from vggexp.training.step import Batch, NonFiniteGuard, optimizer_step
from vggexp.training.timer import PhaseTimer, add_throughput

PRODUCT_SIZE = 4096  # rows and columns of the matrices
ROUNDS = 5
MIN_LOOP_STEPS = 5
LOOP_SECONDS = 1  # least duration of a stretch of the loop, so that its first step counts little
RATES = ("data", "forward", "forward+backward", "step")  # parts that work on one batch
PRODUCT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BenchResult:
    """Medians over the rounds; the fields are the keys of --json."""

    device: str
    precision: str
    threads: int
    batch_size: int
    images_per_second: dict[str, float]  # by part
    product_side: int  # rows and columns of the matrices
    product_gflops: float
    step_gflops: float
    step_over_product: float
    runner_over_step: float


def benchmark(
    config: Config, product_size: int = PRODUCT_SIZE, rounds: int = ROUNDS
) -> BenchResult:
    """Times the parts of a step, a stretch of the loop and a matrix product."""
    # A fast device would reach the epochs that only flip within the rounds.
    config = replace(config, augment=replace(config.augment, flip_only_fraction=None))
    device_setup = setup_device(config)
    device = device_setup.device
    batches = datasets.build_checked_loaders(config, device).train
    state = build.build_state(config, device_setup, batches.batches_per_epoch)
    # Without the check of dead layers, which a run makes once and which would count in a round.
    settings = replace(build.train_settings(config, device_setup), dead_layer_check=None)
    batch = next(iter(batches.train(0)))
    images, _ = batch
    # One stream for all parts, because a pool of workers serves one iteration at a time.
    stream = full_batches(batches, len(images))
    parts = step_parts(state, settings, stream, batch)
    (step_seconds,) = time_rounds({"step": parts["step"]}, 1, device)["step"]
    loop_steps = max(MIN_LOOP_STEPS, math.ceil(LOOP_SECONDS / step_seconds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console = Console(folder / "run.log", io.StringIO())
        logger = RunLogger(folder, console, 1, HParamsTable({}, (), ()), [])
        calls = {
            "product": matrix_product(device_setup.precision, product_size, device),
            **parts,
            **loop_parts(state, settings, stream, loop_steps, logger),
        }
        seconds = time_rounds(calls, rounds, device)
        logger.tensorboard.close(True)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    runner_step = median["loop"] / loop_steps + median["epoch end"] / batches.batches_per_epoch
    # The backward pass takes twice as many operations as the forward pass.
    step_flops = 3 * 2 * macs(layers(config)) * len(images) / median["step"]
    product_flops = 2 * product_size**3 / min(seconds["product"])
    return BenchResult(
        device=config.device.name,
        precision=device_setup.precision,
        threads=device_setup.threads,
        batch_size=len(images),
        images_per_second={name: len(images) / median[name] for name in RATES},
        product_side=product_size,
        product_gflops=product_flops / 1e9,
        step_gflops=step_flops / 1e9,
        step_over_product=step_flops / product_flops,
        runner_over_step=runner_step / median["step"],
    )


def matrix_product(precision: str, size: int, device: torch.device) -> Callable[[], object]:
    dtype = PRODUCT_DTYPES.get(precision, torch.float32)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    return lambda: torch.mm(matrix, matrix)


def step_parts(
    state: TrainState, settings: TrainSettings, stream: Iterator[Batch], batch: Batch
) -> dict[str, Callable[[], object]]:
    """Returns the parts of a step as calls. Each call works on one batch."""
    images, labels = batch
    guard = NonFiniteGuard(settings.device)

    def load() -> None:
        next(stream)

    def forward() -> None:
        with torch.no_grad(), settings.autocast():
            state.model(images)

    def forward_and_backward() -> None:
        with settings.autocast():
            logits = state.model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        state.optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        step_cfg = step_settings(state, settings, guard)
        loss, _ = settings.forward_backward(state.model, batch, step_cfg)
        optimizer_step(state.model, state.optimizer, loss, 0, step_cfg)

    return {
        "data": load,
        "forward": forward,
        "forward+backward": forward_and_backward,
        "step": step,
    }


def loop_parts(
    state: TrainState,
    settings: TrainSettings,
    stream: Iterator[Batch],
    steps: int,
    logger: RunLogger,
) -> dict[str, Callable[[], object]]:
    """Returns a stretch of the loop with its data, and the report at the end of an epoch."""
    timer = PhaseTimer(settings.device)
    loop = TrainLoop(settings, timer, logger, NullCheckpointer(), StopFlag())

    def run_loop() -> None:
        state.batch = 0
        train_epoch(state, islice(stream, steps), loop)

    def end_epoch() -> None:
        metrics = {"epoch": 1, "step": state.step, "lr": 0.0, **state.sums.read("train")}
        logger.epoch(metrics | add_throughput(timer.read(), state.sums.count))
        state.sums.reset()

    return {"loop": run_loop, "epoch end": end_epoch}


def cycle(batches: Batches) -> Iterator[Batch]:
    """Yields the batches of one epoch after the other."""
    for epoch in count():
        yield from batches.train(epoch)


def full_batches(batches: Batches, batch_size: int) -> Iterator[Batch]:
    """Yields the batches of one epoch after the other, without smaller ones at their ends."""
    return (batch for batch in cycle(batches) if len(batch[0]) == batch_size)


def time_rounds(
    calls: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Times the calls in turn, in seconds, after a round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            synchronize(device)
            if round_index > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device) -> None:
    """Waits until the work in flight on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
