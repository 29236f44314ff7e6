"""Learning-rate schedules, as a factor of the configured rate.

All schedules except Plateau are pure functions of time. The rates of every step are those of
torch.optim.lr_scheduler: ConstantLR, MultiStepLR, CosineAnnealingLR with T_max the number of steps,
OneCycleLR with linear annealing, and LinearLR for the warm-up.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# Epochs since the start of the schedule, fractional -> factor. Step n of an epoch of N steps,
# counted from 0, has the time n / N.
Factor = Callable[[float], float]


def constant(epoch: float) -> float:
    return 1.0


def step(epoch: float, *, milestones: Sequence[float], gamma: float) -> float:
    return gamma ** bisect_right(milestones, epoch)


def cosine(epoch: float, *, epochs: float, final_factor: float) -> float:
    """Falls along half a cosine, and would reach `final_factor` one step after the last.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    progress = min(1.0, epoch / epochs)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def onecycle(
    epoch: float, *, peak: float, end: float, initial_factor: float, final_factor: float
) -> float:
    """Rises linearly to 1 and falls linearly to `final_factor`, which the last step has.

    Source: Smith and Topin 2018, arXiv:1708.07120.

    Args:
        peak: Epochs until the factor is 1. May lie between two steps.
        end: Time of the last step, in epochs.
    """
    if epoch < peak:
        return initial_factor + (1 - initial_factor) * epoch / peak
    return 1 + (final_factor - 1) * (min(epoch, end) - peak) / (end - peak)


ROUNDING = 1e-6  # of a step: 1.1 epochs of 10 steps are 11.000000000000002

FACTORS: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "onecycle": onecycle,
}


@dataclass
class Plateau:
    """Lowers the factor when the validation accuracy stops rising: the one schedule with a state.

    Source: Simonyan and Zisserman 2015, section 3.1.
    """

    gamma: float
    patience: int
    threshold: float
    factor: float = 1.0
    best: float = -1.0
    waited: int = 0  # epochs without a better accuracy

    def __call__(self, epoch: float) -> float:
        return self.factor

    def observe(self, accuracy: float, in_warmup: bool = False) -> None:
        """Takes the accuracy (0..1) on the validation images after an epoch.

        An epoch of the warm-up does not count as waited: the full rate has yet to be tried.
        """
        if accuracy > self.best + self.threshold:
            self.best = accuracy
            self.waited = 0
            return
        if in_warmup:
            return
        self.waited += 1
        if self.waited > self.patience:
            self.factor = self.factor * self.gamma
            self.waited = 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = state["factor"]
        self.best = state["best"]
        self.waited = int(state["waited"])


@dataclass
class Schedule:
    """lr times the factor, times a linear rise over the first `warmup_epochs`."""

    lr: float
    warmup_epochs: float
    steps_per_epoch: int
    factor: Factor | Plateau
    start: int = 0  # step at which the time of the factor starts

    def at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        The first step of a warm-up already has a rate above zero, and its last step has `lr`.
        """
        rate = self.lr
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if warmup_steps:
            rate *= min(1.0, (step + 1) / warmup_steps)
        if step < self.start:
            return rate
        return rate * self.factor((step - self.start) / self.steps_per_epoch)

    def observe(self, accuracy: float | None, epoch: int) -> None:
        """Takes the accuracy on the validation images after an epoch, counted from 1."""
        if isinstance(self.factor, Plateau) and accuracy is not None:
            self.factor.observe(accuracy, in_warmup=epoch <= self.warmup_epochs)

    def state_dict(self) -> dict[str, float]:
        return self.factor.state_dict() if isinstance(self.factor, Plateau) else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if isinstance(self.factor, Plateau):
            self.factor.load_state_dict(state)


def build_schedule(
    name: str,
    lr: float,
    warmup_epochs: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    **arguments: Any,
) -> Schedule:
    """Returns the schedule `name`, which is a key of FACTORS or "plateau".

    cosine and onecycle start at the first step after the warm-up and take the rest of the run. The
    milestones of step count from the start of the run.

    Args:
        arguments: Keyword arguments of that schedule.
    """
    start = 0
    if name in ("cosine", "onecycle"):
        start = math.ceil(warmup_epochs * steps_per_epoch - ROUNDING)
    steps = epochs * steps_per_epoch - start
    if name == "cosine":
        arguments["epochs"] = steps / steps_per_epoch
    if name == "onecycle":
        # torch's OneCycleLR has both turning points one step early, since it counts from 0.
        arguments["peak"] = (arguments.pop("peak_fraction") * steps - 1) / steps_per_epoch
        arguments["end"] = (steps - 1) / steps_per_epoch
    factor: Factor | Plateau
    if name == "plateau":
        factor = Plateau(**arguments)
    else:
        factor = partial(FACTORS[name], **arguments)
    return Schedule(lr, warmup_epochs, steps_per_epoch, factor, start)
