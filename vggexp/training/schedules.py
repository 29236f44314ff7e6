"""Learning-rate schedules, as a factor of the configured rate.

All schedules except Plateau are pure functions of the time in the run.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Factor = Callable[[float], float]  # epochs since the start of the run, fractional -> factor


def constant(epoch: float) -> float:
    return 1.0


def step(epoch: float, *, milestones: Sequence[float], gamma: float) -> float:
    return gamma ** bisect_right(milestones, epoch)


def cosine(epoch: float, *, epochs: int, final_factor: float) -> float:
    """Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts."""
    progress = min(1.0, epoch / epochs)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def onecycle(
    epoch: float, *, epochs: int, peak_fraction: float, initial_factor: float, final_factor: float
) -> float:
    """Linear up to the peak, linear down. Source: Smith and Topin 2018, arXiv:1708.07120."""
    progress = min(1.0, epoch / epochs)
    if progress < peak_fraction:
        return initial_factor + (1 - initial_factor) * progress / peak_fraction
    return 1 + (final_factor - 1) * (progress - peak_fraction) / (1 - peak_fraction)


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

    def observe(self, accuracy: float) -> None:
        """Takes the accuracy (0..1) on the validation images after an epoch."""
        if accuracy > self.best + self.threshold:
            self.best = accuracy
            self.waited = 0
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

    def at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        The first step of a warm-up already has a rate above zero.
        """
        rate = self.lr
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if warmup_steps:
            rate *= min(1.0, (step + 1) / warmup_steps)
        return rate * self.factor(step / self.steps_per_epoch)

    def observe(self, accuracy: float | None) -> None:
        if isinstance(self.factor, Plateau) and accuracy is not None:
            self.factor.observe(accuracy)

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

    Args:
        arguments: Keyword arguments of that schedule.
    """
    if name in ("cosine", "onecycle"):
        arguments["epochs"] = epochs
    factor: Factor | Plateau
    if name == "plateau":
        factor = Plateau(**arguments)
    else:
        factor = partial(FACTORS[name], **arguments)
    return Schedule(lr, warmup_epochs, steps_per_epoch, factor)
