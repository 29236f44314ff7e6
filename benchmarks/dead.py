"""Set-ups that are known not to learn, set-ups that do, and what a run says of each.

    python -m benchmarks.dead          the tables of benchmarks/dead.md; also `make dead`; a quarter of an hour

VGG, an eighth as wide as the paper's, on handwritten digits at 32 px; an epoch is 40 steps of 32 pictures.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vggexp.bench.measure import NullCheckpointer
from vggexp.config import compose
from vggexp.loggers.run_logger import NullLogger
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training.loop import TrainState, train
from vggexp.training.timer import PhaseTimer

GUESS = math.log(10)
LEARNT = GUESS - 0.3  # nats: the mean loss of an epoch below which a set-up has learnt
SMALL = [
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "data=digits",
    "data.resize=32",
    "data.limit=1280",
]
SMALL += ["data.val_fraction=0", "data.batch_size=32", "arch.width=0.125", "arch.hidden=[64]"]
EPOCHS = 8


DEAD = (
    "arch=vgg16 optimizer.lr=0.1",
    "arch=vgg19 optimizer.lr=0.05",
    "arch=vgg16 optimizer=adam optimizer.lr=0.01",
    "arch=vgg16 optimizer.weight_decay=1",
    "arch=vgg19 arch.init=xavier optimizer=sgd",
    "arch=vgg19 arch.init=paper arch.width=0.04 optimizer=sgd",  # a Gaussian too small for so few channels
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
# These stay at the loss of guessing for longer, and learn in so many epochs.
SLOW = {
    "arch=vgg16 arch.width=0.06 arch.hidden=[32] arch.init=paper": 10,
    "arch=vgg16 arch.init=xavier": 24,
    "arch=vgg11 arch.init=xavier optimizer=sgd data.normalize=false": 24,
}


class Trial(NamedTuple):
    warning: list[str]  # its two lines, or none
    losses: list[float]  # the mean of each epoch

    def learns(self) -> bool:
        return min(self.losses) < LEARNT

    def cures(self) -> list[str]:
        return self.warning[1].removeprefix("advice   try ").split(", or ")


class Listener(NullLogger):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def log(self, text: str) -> None:
        self.notes.append(text)


class Unkept(NullCheckpointer):
    def save(self, state: TrainState) -> None: ...


def trial(words: Sequence[str], epochs: int) -> Trial:
    """Trains without a run directory."""
    config = expand.compose_run(compose.parse_command([*SMALL, *words, f"train.epochs={epochs}"]))
    hardware = setup_device(config)
    data = datasets.build_loaders(config, hardware.device)
    state = build.build_state(config, hardware, data.train.batches_per_epoch)
    plan = build.train_settings(config, hardware)
    heard = Listener()
    train(
        state,
        data.train,
        plan,
        PhaseTimer(hardware.device),
        lambda model: {},
        heard,
        Unkept(),
        StopFlag(),
    )
    lines = [line for note in heard.notes for line in note.splitlines()]
    return Trial(lines, [row["train/loss"] for row in state.history])


def told(words: str, made: Trial) -> str:
    """A row of the table."""
    layer = made.warning[0].partition("): ")[2] if made.warning else ""
    losses = " ".join(f"{loss:.2f}" for loss in made.losses)
    return f"| `{words}` | {layer} | {'yes' if made.learns() else 'no'} | {losses} |"


def main() -> None:
    print(
        "| overrides | warning | learns | mean loss of each epoch |\n|---|---|---|---|",
        flush=True,
    )
    for words in DEAD:
        made = trial(words.split(), EPOCHS)
        print(told(words, made), flush=True)
        for cure in made.cures() if made.warning else ():
            print(told(f"... {cure}", trial([*words.split(), *cure.split()], EPOCHS)), flush=True)
    for words, epochs in [*((words, EPOCHS) for words in HEALTHY), *SLOW.items()]:
        print(told(words, trial(words.split(), epochs)), flush=True)


if __name__ == "__main__":
    main()
