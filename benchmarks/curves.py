"""Measures what the curves inside the epochs cost: python -m benchmarks.curves [overrides].

Trains stretches of the same batches in turn, without points and with a point after each step. The
difference is the cost of a point: a wait for the device, a line of steps.jsonl, and an event of
TensorBoard. A run with the default `train.log_steps` has a point only after many steps, so its
share is the cost of one point over the time of these steps.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from vggexp.bench.measure import cycle, time_rounds
from vggexp.config.compose import parse_command
from vggexp.config.schema import Config
from vggexp.loggers.console import Console
from vggexp.loggers.hparams import hparams_table
from vggexp.loggers.run_logger import RunLogger
from vggexp.runner import build, datasets
from vggexp.runner.hardware import DeviceSetup, setup_device
from vggexp.sweep.expand import compose_run
from vggexp.system.signals import StopFlag
from vggexp.training.loop import Batches, NullCheckpointer, TrainLoop, train_epoch
from vggexp.training.metrics import point_interval
from vggexp.training.timer import PhaseTimer

STEPS = 10  # of a stretch
ROUNDS = 9


def make_stretches(
    config: Config, device_setup: DeviceSetup, batches: Batches, folder: Path
) -> dict[str, Callable[[], None]]:
    """Returns a call for each kind of stretch."""
    state = build.build_state(config, device_setup, batches.batches_per_epoch)
    settings = build.train_settings(config, device_setup)
    stream = cycle(batches)
    console = Console(folder / "run.log", io.StringIO())
    logger = RunLogger(folder, console, 1, hparams_table(config), [])

    def train(log_steps: int) -> None:
        loop = TrainLoop(
            replace(settings, log_steps=log_steps, dead_layer_check=None),
            PhaseTimer(settings.device),
            logger,
            NullCheckpointer(),
            StopFlag(),
        )
        state.batch = 0
        state.sums.reset()
        train_epoch(state, islice(stream, STEPS), loop)

    return {"without": partial(train, 0), "with": partial(train, 1)}


def main() -> None:
    config = compose_run(parse_command(sys.argv[1:]))
    device_setup = setup_device(config)
    batches = datasets.build_loaders(config, device_setup.device).train
    interval = point_interval(batches.batches_per_epoch)
    with TemporaryDirectory() as folder:
        stretches = make_stretches(config, device_setup, batches, Path(folder))
        seconds = time_rounds(stretches, ROUNDS, device_setup.device)
    step = median(seconds["without"]) / STEPS
    costs = []
    for without, with_points in zip(seconds["without"], seconds["with"], strict=True):
        costs.append((with_points - without) / STEPS)
    point = median(costs)
    print(f"a step                  {1000 * step:.3f} ms")
    print(f"a point after each step {1000 * point:+.3f} ms")
    print(f"steps between points    {interval}")
    print(f"share of the training   {100 * point / (interval * step):+.3f} %")


if __name__ == "__main__":
    main()
