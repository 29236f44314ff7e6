"""python -m benchmarks.gpu.loop STEPS OVERRIDE...: the training loop of a run, over some steps.

Prints one JSON object: the seconds of the first step, in which libraries tune and compile, and the
rate of later steps.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from vggexp.config import compose
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training.loop import (
    Batches,
    NullCheckpointer,
    NullLogger,
    TrainLoop,
    train_epoch,
)
from vggexp.training.timer import PhaseTimer

ROUND_SECONDS = 2.0  # a round is shortened to about this on a slow machine


class FirstBatches:
    """The first `steps` full batches of an epoch, as an epoch of their own."""

    def __init__(self, batches: Batches, batch_size: int, steps: int):
        self.batches = batches
        self.batches_per_epoch = max(1, min(steps, batches.count // batch_size))
        self.batch_size = batch_size

    @property
    def count(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def train(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return islice(self.batches.train(epoch, start), self.batches_per_epoch)


class BenchLoop:
    """Data, loop, guard and timer of a run, without a run directory."""

    def __init__(self, overrides: Sequence[str], steps: int):
        self.config = expand.compose_run(compose.parse_command(list(overrides)))
        device_setup = setup_device(self.config)
        self.device = device_setup.device
        self.data = datasets.build_loaders(self.config, self.device)
        self.batches = FirstBatches(self.data.train, self.config.data.batch_size, steps)
        self.state = build.build_state(self.config, device_setup, self.batches.batches_per_epoch)
        self.loop = TrainLoop(
            build.train_settings(self.config, device_setup),
            PhaseTimer(self.device),
            NullLogger(),
            NullCheckpointer(),
            StopFlag(),
        )

    def run_epoch(self) -> float:
        """Returns the seconds of the steps, from an idle device to an idle device."""
        # torch's switches belong to the process, and another loop may have changed them.
        setup_device(self.config)
        self.state.batch = 0
        self._synchronize()
        start = time.perf_counter()
        self.loop.timer.start()
        train_epoch(self.state, self.batches.train(self.state.epoch), self.loop)
        self._synchronize()
        return time.perf_counter() - start

    def measure_rate(self) -> float:
        """Returns the images per second of one round."""
        return self.batches.count / self.run_epoch()

    def warm_up(self) -> float:
        """Runs two steps that do not count, and sets the length of the rounds.

        Returns:
            Seconds of the first step.
        """
        max_steps = self.batches.batches_per_epoch
        self.batches.batches_per_epoch = 1
        first_seconds = self.run_epoch()
        step_seconds = self.run_epoch()
        steps = round(ROUND_SECONDS / step_seconds)
        self.batches.batches_per_epoch = max(1, min(max_steps, steps))
        return first_seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure_in_turn(loops: dict[str, BenchLoop], rounds: int) -> dict[str, list[float]]:
    """Returns the rates of each loop. The loops take turns in each round."""
    for loop in loops.values():
        loop.warm_up()
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            rates[name].append(loop.measure_rate())
    return rates


def main() -> None:
    steps, *overrides = sys.argv[1:]
    loop = BenchLoop(overrides, int(steps))
    first_seconds = loop.warm_up()
    rate = statistics.median(loop.measure_rate() for _ in range(3))
    print(json.dumps({"first": first_seconds, "rate": rate}))


if __name__ == "__main__":
    main()
