"""Small models and training states, and a loop that runs them without a run directory."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vggexp.models.init import initialize
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.rng import generator
from vggexp.system.signals import StopFlag
from vggexp.training.checkpoint_schema import FORMAT_VERSION
from vggexp.training.ema import EMA
from vggexp.training.loop import (
    NullCheckpointer,
    NullLogger,
    TrainLoop,
    TrainSettings,
    TrainState,
    train,
)
from vggexp.training.metrics import MetricSums, evaluate
from vggexp.training.precision import build_scaler
from vggexp.training.schedules import Schedule, build_schedule
from vggexp.training.step import Batch
from vggexp.training.timer import PhaseTimer

CPU = torch.device("cpu")

torch.set_num_threads(1)  # a second thread makes such small models several times slower


def make_model(seed: int = 0, **overrides: Any) -> nn.Sequential:
    """Returns a VGG of one convolution for gray images of 4 x 4 pixels in four classes."""
    arguments = {
        "blocks": [Block(1, 8)],
        "norm": "none",
        "hidden": (16,),
        "dropout": 0.3,
        "width": 1,
        "in_channels": 1,
        "size": 4,
        "classes": 4,
    }
    model = vgg(**arguments | overrides)
    initialize(model, "kaiming", seed)
    return model


def make_schedule(
    name: str = "constant", lr: float = 0.05, warmup_epochs: float = 0, epochs: int = 4, **arguments
) -> Schedule:
    """Returns a schedule for epochs of three steps."""
    return build_schedule(name, lr, warmup_epochs, epochs=epochs, steps_per_epoch=3, **arguments)


def make_state(
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Schedule | None = None,
    ema_decay: float | None = None,
    precision: str = "fp32",
) -> TrainState:
    """Returns the state of a run at its start."""
    if model is None:
        model = make_model(norm="batch")
    if optimizer is None:
        optimizer = partial(torch.optim.SGD, momentum=0.9, fused=True)
    return TrainState(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.05),
        schedule=schedule or make_schedule(),
        scaler=build_scaler(precision, CPU),
        ema=EMA(model, ema_decay) if ema_decay else None,
        sums=MetricSums(CPU),
    )


def make_checkpoint(state: TrainState) -> dict[str, Any]:
    """Returns the content of a checkpoint of a run on Blobs."""
    facts = {
        "format": FORMAT_VERSION,
        "identity": {"train.epochs": 4, "arch.blocks": [[1, 8]], "optimizer.name": "SGD"},
        "torch": str(torch.__version__),
        "threads": 1,
        "device": "cpu",
        "device_name": "a processor",
        "cpu_capability": "AVX2",
        "precision": "fp32",
        "processes": 1,
        "data": {"train": "0" * 64, "test": "1" * 64},
        "classes": list("abcd"),
        "mean": torch.tensor([0.5]),
        "std": torch.tensor([0.25]),
    }
    return facts | copy.deepcopy(state.capture())


def make_settings(**overrides: Any) -> TrainSettings:
    settings = {
        "device": CPU,
        "seed": 0,
        "epochs": 4,
        "batch_size": 8,
        "label_smoothing": 0.0,
        "clip_norm": None,
        "patience": None,
        "rest_minutes": 0.0,
        "autocast": contextlib.nullcontext,
    }
    return TrainSettings(**settings | overrides)


def make_loop(logger=None, checkpointer=None, timer=None, **settings: Any) -> TrainLoop:
    return TrainLoop(
        make_settings(**settings),
        timer or PhaseTimer(CPU),
        logger or NullLogger(),
        checkpointer or NullCheckpointer(),
        StopFlag(),
    )


class Blobs:
    """Four classes, each a bright corner of a noisy image. 22 images make a short last batch."""

    count = 22
    batches_per_epoch = 3

    def __init__(self, nonfinite: tuple[int, int] | None = None):
        """Takes the epoch and batch whose images are not finite."""
        self.nonfinite = nonfinite
        self.labels = torch.arange(22) % 4
        self.images = 0.3 * torch.randn(22, 1, 4, 4, generator=generator(0, "blobs"))
        corners = self.images.view(22, 2, 2, 2, 2)
        corners[range(22), self.labels // 2, :, self.labels % 2] += 1

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(22, generator=generator(0, "order", epoch))
        for batch, indices in list(enumerate(order.split(8)))[start:]:
            images = self.images[indices]
            if (epoch, batch) == self.nonfinite:
                images = images * math.nan
            yield images, self.labels[indices]


class RecordingLogger:
    """Keeps everything that the loop reports."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.steps: list[dict] = []
        self.images_seen: list[list[int]] = []  # epoch, batches, images
        self.messages: list[str] = []

    def progress(self, epoch: int, batches: int, done: int):
        self.images_seen.append([epoch, batches, 0])
        return contextlib.nullcontext(self)

    def update(self, images: int, loss: Callable[[], float]) -> None:
        self.images_seen[-1][-1] += images

    def step(self, row: dict) -> None:
        self.steps.append(row)

    def epoch(self, row: dict) -> None:
        self.rows.append(row)

    def log(self, text: str) -> None:
        self.messages.append(text)


class RecordingCheckpointer:
    """Copies the state at the step `step`, and after every epoch."""

    def __init__(self, state: TrainState | None = None, step: int | None = None):
        self.state = state
        self.step = step
        self.saved: dict[int, dict] = {}  # by step

    def is_due(self) -> bool:
        return self.state is not None and self.state.step == self.step

    def save(self, state: TrainState) -> None:
        self.saved[state.step] = copy.deepcopy(state.capture())


def evaluate_blobs(model: nn.Module) -> dict[str, float]:
    blobs = Blobs()
    batches = [(blobs.images, blobs.labels)]
    return evaluate(model, batches, CPU, contextlib.nullcontext, "val")


def run_training(
    state: TrainState,
    batches=None,
    evaluate_model=evaluate_blobs,
    checkpointer=None,
    until=None,
    **settings: Any,
) -> RecordingLogger:
    """Trains on Blobs, unless other batches are given."""
    logger = RecordingLogger()
    loop = make_loop(logger, checkpointer, **settings)
    train(state, batches or Blobs(), loop, evaluate_model, until)
    return logger


def flat_weights(state: TrainState) -> Tensor:
    tensors = state.model.state_dict().values()
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])
