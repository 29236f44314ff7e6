"""Thirty steps of the whole loop against a loop written with torch alone, in fp64.

Every optimizer with every schedule, and with all of these at once: a short last batch,
accumulation, smoothed labels, weight decay, clipping and the average of the weights. SGD has batch
norm too. There the gradient of a convolution's bias is zero but for rounding, which other
optimizers enlarge.
"""

import contextlib
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.factories import CPU, Blobs, make_model, make_schedule, make_state, run_training
from vggexp.config.torch_optim import UNSUPPORTED_OPTIMIZERS, optimizers
from vggexp.training.metrics import evaluate
from vggexp.training.optimizers import build_optimizer

EPOCHS = 10  # of three steps
LR = 0.02
WEIGHT_DECAY = 1e-3
CLIP_NORM = 0.3
SMOOTHING = 0.1
EMA_DECAY = 0.8
NAMES = sorted(set(optimizers()) - set(UNSUPPORTED_OPTIMIZERS))
SCHEDULES = {  # name: arguments here, the class of torch with the same rates
    "constant": ({}, partial(lr_scheduler.ConstantLR, factor=1)),
    "step": (
        {"milestones": [2, 5], "gamma": 0.5},
        partial(lr_scheduler.MultiStepLR, milestones=[6, 15], gamma=0.5),
    ),
    "cosine": (
        {"final_factor": 0.1},
        partial(lr_scheduler.CosineAnnealingLR, T_max=30, eta_min=0.1 * LR),
    ),
    "onecycle": (
        {"peak_fraction": 0.3, "initial_factor": 0.1, "final_factor": 0.05},
        partial(
            lr_scheduler.OneCycleLR,
            max_lr=LR,
            total_steps=30,
            pct_start=0.3,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=2,
        ),
    ),
    "plateau": (
        {"gamma": 0.5, "patience": 1, "threshold": 0.1},
        partial(
            lr_scheduler.ReduceLROnPlateau,
            mode="max",
            factor=0.5,
            patience=1,
            threshold=0.1,
            threshold_mode="abs",
        ),
    ),
}


class Fp64Blobs(Blobs):
    def __init__(self) -> None:
        super().__init__()
        self.images = self.images.double()


def make_fp64_model(name: str) -> nn.Module:
    return make_model(norm="batch" if name == "SGD" else "none", dropout=0).double()


def evaluate_all(model: nn.Module) -> dict[str, float]:
    blobs = Fp64Blobs()
    return evaluate(model, [(blobs.images, blobs.labels)], CPU, contextlib.nullcontext, "val")


def train_with_vggexp(name: str, schedule: str) -> tuple[nn.Module, nn.Module]:
    model = make_fp64_model(name)
    state = make_state(
        model,
        optimizer=lambda parameters, lr: build_optimizer(name, model, lr, WEIGHT_DECAY, {}),
        schedule=make_schedule(schedule, LR, epochs=EPOCHS, **SCHEDULES[schedule][0]),
        ema_decay=EMA_DECAY,
    )
    state.micro_batches = 2
    run_training(
        state,
        Fp64Blobs(),
        evaluate_all,
        epochs=EPOCHS,
        clip_norm=CLIP_NORM,
        label_smoothing=SMOOTHING,
    )
    assert state.step == 30
    return model, state.eval_model()


def train_with_torch(name: str, schedule: str) -> tuple[nn.Module, nn.Module]:
    model = make_fp64_model(name)
    cls = getattr(torch.optim, name)
    decay = {} if name == "Rprop" else {"weight_decay": WEIGHT_DECAY}
    optimizer = cls(model.parameters(), lr=LR, **decay)
    scheduler = SCHEDULES[schedule][1](optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in Fp64Blobs().train(epoch):
            for half in torch.arange(len(images)).chunk(2):
                loss = cross_entropy(
                    model(images[half]), labels[half], reduction="sum", label_smoothing=SMOOTHING
                )
                (loss / 8).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            if schedule != "plateau":
                scheduler.step()
        if schedule == "plateau":
            scheduler.step(evaluate_all(average.module)["val/accuracy"])
    return model, average.module


def optimizers_with_schedules() -> list:
    """Returns all pairs. The quick tests have those with SGD or with cosine."""
    pairs = []
    for name, schedule in itertools.product(NAMES, SCHEDULES):
        is_quick = name == "SGD" or schedule == "cosine"
        marks = () if is_quick else pytest.mark.catalog
        pairs.append(pytest.param(name, schedule, marks=marks))
    return pairs


@pytest.mark.parametrize(("name", "schedule"), optimizers_with_schedules())
def test_thirty_steps(name, schedule):
    trained = train_with_vggexp(name, schedule)
    expected = train_with_torch(name, schedule)
    for model, torch_model in zip(trained, expected, strict=True):
        tensors = torch_model.state_dict()
        for key, tensor in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue  # torch averages this count
            # The loss is computed in fp32.
            torch.testing.assert_close(tensor, tensors[key], rtol=1e-5, atol=1e-6)
