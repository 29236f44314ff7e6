"""Configurations that are known not to learn, configurations that do, and the run's warnings.

    python -m benchmarks.dead          the tables of benchmarks/dead.md; also `make dead`

A VGG with an eighth of the paper's width, on handwritten digits at 32 px. An epoch is 40 steps of
32 images. A quarter of an hour.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vggexp.config import compose
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training.loop import NullCheckpointer, NullLogger, TrainLoop, train
from vggexp.training.timer import PhaseTimer

GUESSING_LOSS = math.log(10)  # nats, of ten classes
LEARNS_BELOW = GUESSING_LOSS - 0.3  # nats: a configuration learns if an epoch's mean loss is lower
SMALL = [
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "data=digits",
    "data.resize=32",
    "data.limit=1280",
    "data.val_fraction=0",
    "data.batch_size=32",
    "arch.width=0.125",
    "arch.hidden=[64]",
]
EPOCHS = 8

DEAD = (
    "arch=vgg16 optimizer.lr=0.1",
    "arch=vgg19 optimizer.lr=0.05",
    "arch=vgg16 optimizer=adam optimizer.lr=0.01",
    "arch=vgg16 optimizer.weight_decay=1",
    "arch=vgg19 arch.init=xavier optimizer=sgd",
    # a Gaussian whose std is too small for so few channels
    "arch=vgg19 arch.init=paper arch.width=0.04 optimizer=sgd",
)
# The loss rises far above that of guessing, comes back to it before the check and stays there.
TOO_LARGE = (
    "arch=vgg19_bn arch.hidden=[1024,1024] optimizer.lr=0.05",
    "arch=vgg19_bn arch.hidden=[1024,1024] optimizer.lr=0.1",
    "arch=vgg19_bn arch.hidden=[1024,1024] optimizer=sgd optimizer.lr=0.1",
    "arch=vgg19_bn arch.hidden=[1024,1024] optimizer=rmsprop optimizer.lr=0.01",
)
HEALTHY = (
    "arch=vgg11",
    "arch=vgg13",
    "arch=vgg16",
    "arch=vgg19",
    "arch=vgg16c",
    "arch=vgg11_lrn",
    "arch=vgg11_bn",
    "arch=vgg13_bn",
    "arch=vgg16_bn",
    "arch=vgg19_bn",
    "arch=vgg11 optimizer.lr=0.05",
    "arch=vgg19 optimizer.lr=0.001",
    "arch=vgg11 optimizer=sgd",
    "arch=vgg16 optimizer=sgd",
    "arch=vgg19 optimizer=sgd",
    "arch=vgg11 optimizer=adam",
    "arch=vgg16 optimizer=adam",
    "arch=vgg11 arch.init=xavier",
    "arch=vgg16 train.label_smoothing=0.2",
    "arch=vgg11 data.normalize=false",
)
# These stay at the loss of guessing for longer, and learn within this many epochs.
SLOW = {
    "arch=vgg16 arch.width=0.06 arch.hidden=[32] arch.init=paper": 10,
    "arch=vgg16 arch.init=xavier": 24,
    "arch=vgg11 arch.init=xavier optimizer=sgd data.normalize=false": 24,
}


class Trial(NamedTuple):
    """A short training. warning: its two lines, or none. losses: the mean of each epoch."""

    warning: list[str]
    losses: list[float]

    def learns(self) -> bool:
        return min(self.losses) < LEARNS_BELOW

    def suggestions(self) -> list[str]:
        """Returns the overrides that the warning suggests."""
        if not self.warning:
            return []
        return self.warning[1].removeprefix("advice   try ").split(", or ")


class MessageLogger(NullLogger):
    """Keeps what the loop logs."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, text: str) -> None:
        self.messages.append(text)


def run_trial(overrides: Sequence[str], epochs: int) -> Trial:
    """Trains without a run directory."""
    command = compose.parse_command([*SMALL, *overrides, f"train.epochs={epochs}"])
    config = expand.compose_run(command)
    device_setup = setup_device(config)
    data = datasets.build_loaders(config, device_setup.device)
    state = build.build_state(config, device_setup, data.train.batches_per_epoch)
    settings = build.train_settings(config, device_setup)
    timer = PhaseTimer(device_setup.device)
    logger = MessageLogger()
    loop = TrainLoop(settings, timer, logger, NullCheckpointer(), StopFlag())
    train(state, data.train, loop, lambda model: {})
    lines = [line for message in logger.messages for line in message.splitlines()]
    return Trial(lines, [row["train/loss"] for row in state.history])


def print_row(name: str, overrides: Sequence[str], epochs: int) -> Trial:
    trial = run_trial(overrides, epochs)
    layer = trial.warning[0].partition("): ")[2] if trial.warning else ""
    learns = "yes" if trial.learns() else "no"
    losses = " ".join(f"{loss:.2f}" for loss in trial.losses)
    print(f"| `{name}` | {layer} | {learns} | {losses} |", flush=True)
    return trial


def main() -> None:
    print("| overrides | warning | learns | mean loss of each epoch |")
    print("|---|---|---|---|", flush=True)
    for overrides in (*DEAD, *TOO_LARGE):
        trial = print_row(overrides, overrides.split(), EPOCHS)
        for suggestion in trial.suggestions():
            print_row(f"... {suggestion}", [*overrides.split(), *suggestion.split()], EPOCHS)
    for overrides in HEALTHY:
        print_row(overrides, overrides.split(), EPOCHS)
    for overrides, epochs in SLOW.items():
        print_row(overrides, overrides.split(), epochs)


if __name__ == "__main__":
    main()
