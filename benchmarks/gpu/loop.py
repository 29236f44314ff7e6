"""python -m benchmarks.gpu.loop OVERRIDE...: the loop of a configuration, as a run has it, over some steps.

Prints one JSON object: the seconds of the first step, in which libraries tune and compile, and the rate of later ones.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from vggexp.bench.measure import NullCheckpointer
from vggexp.config import compose
from vggexp.loggers.run_logger import NullLogger
from vggexp.runner import build, datasets, hardware
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training.loop import Batches, train_epoch
from vggexp.training.step import NonFiniteGuard
from vggexp.training.timer import PhaseTimer

ROUND_SECONDS = 2.0


class First:
    """The first `steps` whole batches of an epoch stand for it."""

    def __init__(self, batches: Batches, batch_size: int, steps: int):
        self.batches = batches
        self.batches_per_epoch = max(1, min(steps, batches.count // batch_size))
        self.batch_size = batch_size

    @property
    def count(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def train(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return islice(self.batches.train(epoch, start), self.batches_per_epoch)


class Loop:
    """Data, loop, guard and clock of a run, without its folder."""

    def __init__(self, words: Sequence[str], steps: int):
        self.config = expand.compose_run(compose.parse_command(list(words)))
        self.hardware = hardware.setup_device(self.config)
        self.device = self.hardware.device
        self.data = datasets.build_loaders(self.config, self.device)
        self.batches = First(self.data.train, self.config.data.batch_size, steps)
        self.state = build.build_state(self.config, self.hardware, self.batches.batches_per_epoch)
        self.plan, self.guard = (
            build.train_settings(self.config, self.hardware),
            NonFiniteGuard(self.device),
        )

    def epoch(self) -> float:
        """Seconds of the steps, from an idle device to an idle device."""
        hardware.setup_device(
            self.config
        )  # the switches are the process's, and another loop may have set them
        self.state.batch = 0
        self.wait()
        begin = time.perf_counter()
        train_epoch(
            self.state,
            self.batches,
            self.plan,
            PhaseTimer(self.device),
            self.guard,
            NullLogger(),
            NullCheckpointer(),
            StopFlag(),
        )
        self.wait()
        return time.perf_counter() - begin

    def rate(self) -> float:
        """Images a second of one round."""
        return self.batches.count / self.epoch()

    def tune(self) -> float:
        """Two steps that do not count. On a slow machine later rounds are shortened. Returns the first's seconds."""
        most = self.batches.batches_per_epoch
        self.batches.batches_per_epoch = 1
        first = self.epoch()
        step = self.epoch()
        self.batches.batches_per_epoch = max(1, min(most, round(ROUND_SECONDS / step)))
        return first

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def alternating(loops: dict[str, Loop], rounds: int) -> dict[str, list[float]]:
    """The rate of each loop in each round, taken in turn."""
    for loop in loops.values():
        loop.tune()
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            rates[name].append(loop.rate())
    return rates


def main() -> None:
    steps, *words = sys.argv[1:]
    loop = Loop(words, int(steps))
    first = loop.tune()
    print(json.dumps({"first": first, "rate": statistics.median(loop.rate() for _ in range(3))}))


if __name__ == "__main__":
    main()
