"""The training loop, on one page: what is due when can be read from top to bottom."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from vggexp.clock import Clock
from vggexp.errors import DivergedError
from vggexp.metrics import Sums
from vggexp.optim import set_lr
from vggexp.rng import seed_step
from vggexp.schedules import Schedule
from vggexp.step import Guard, train_step

Row = dict[str, Any]  # one object of metrics.jsonl


class Batches(Protocol):
    count: int  # images
    batches_per_epoch: int

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class State:
    """What a run is at one instant."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: GradScaler
    ema: AveragedModel | None
    epoch: int = 0  # finished epochs
    step: int = 0  # optimizer steps taken
    history: list[Row] = field(default_factory=list)  # a row for each finished epoch

    def evaluated(self) -> nn.Module:
        """The weights that scores are taken with."""
        return self.ema.module if self.ema is not None else self.net


@dataclass(frozen=True)
class Plan:
    """What stays the same through a run."""

    device: torch.device
    seed: int
    epochs: int
    batch_size: int
    accumulate: int
    label_smoothing: float
    clip_norm: float | None
    patience: int | None
    rest_minutes: float
    autocast: Callable[[], AbstractContextManager]


class Progress(Protocol):
    def update(self, images: int) -> None: ...


class Watcher(Protocol):
    """What the loop tells while it runs; see vggexp.watch."""

    def progress(self, epoch: int, batches: int) -> AbstractContextManager[Progress]: ...

    def epoch(self, row: Row) -> None: ...


def train(
    state: State, batches: Batches, plan: Plan, clock: Clock, measure: Callable[[nn.Module], Row], watcher: Watcher
) -> None:
    """Runs the epochs that are left. `measure` scores the weights after an epoch. Raises DivergedError."""
    guard = Guard(plan.device)
    while state.epoch < plan.epochs and not stalled(state.history, plan.patience):
        clock.start()
        row = {"epoch": state.epoch + 1, **one_epoch(state, batches, plan, clock, guard, watcher)}
        row |= measure(state.evaluated())
        clock.lap("evaluation")
        state.schedule.observe(row.get("val/accuracy"))
        state.epoch += 1
        row |= rates(clock.read(), batches.count)
        state.history.append(row)
        watcher.epoch(row)
        if state.epoch < plan.epochs:
            time.sleep(plan.rest_minutes * 60)


def one_epoch(state: State, batches: Batches, plan: Plan, clock: Clock, guard: Guard, watcher: Watcher) -> Row:
    """Takes every training image once, in the order and with the dropout that belong to this epoch."""
    state.net.train()
    sums = Sums(plan.device)
    with watcher.progress(state.epoch + 1, batches.batches_per_epoch) as progress:
        for batch, (images, labels) in enumerate(batches.train(state.epoch)):
            clock.lap("data")
            lr = state.schedule.at(state.step)
            set_lr(state.optimizer, lr)
            seed_step(plan.seed, "step", state.epoch, batch)
            applied = train_step(
                state.net, state.optimizer, state.scaler, guard, sums, images, labels,
                step=state.step, batch_size=plan.batch_size, accumulate=plan.accumulate, clip_norm=plan.clip_norm,
                label_smoothing=plan.label_smoothing, autocast=plan.autocast, lap=clock.lap,
            )  # fmt: skip
            if not applied:
                raise diverged(state, guard, batches.batches_per_epoch)
            state.step += 1
            if state.ema is not None:
                state.ema.update_parameters(state.net)
            progress.update(len(images))
            clock.lap("logging")
    if guard.bad_step() is not None:
        raise diverged(state, guard, batches.batches_per_epoch)
    return {"step": state.step, "lr": lr, **sums.read("train")}


def diverged(state: State, guard: Guard, batches_per_epoch: int) -> DivergedError:
    epoch, batch = divmod(guard.bad_step() or 0, batches_per_epoch)
    lr = state.schedule.at(guard.bad_step() or 0)
    return DivergedError(
        f"the loss or its gradient is not finite at epoch {epoch + 1} batch {batch + 1} with lr {lr:g}; "
        f"try optimizer.lr={lr / 10:g} or train.clip_norm=1"
    )


def stalled(history: list[Row], patience: int | None) -> bool:
    """Whether the last `patience` epochs brought no better validation accuracy."""
    if patience is None or len(history) <= patience:
        return False
    accuracies = [row["val/accuracy"] for row in history]
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])


def rates(times: dict[str, float], images: int) -> dict[str, float]:
    aside = sum(times[f"time/{part}_seconds"] for part in ("evaluation", "checkpoint"))
    return {"images_per_second": images / max(1e-9, times["time/epoch_seconds"] - aside), **times}
