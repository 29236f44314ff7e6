"""The training loop, on one page: what is due when can be read from top to bottom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from vggexp.distributed import collectives
from vggexp.errors import DivergedError, ResourceError
from vggexp.models.transfer import train_mode
from vggexp.rng import seed_step
from vggexp.system import memory
from vggexp.system.signals import StopFlag
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.ema import EMA
from vggexp.training.metrics import MetricSums
from vggexp.training.optimizers import set_lr
from vggexp.training.schedules import Schedule
from vggexp.training.step import NonFiniteGuard, forward_backward, optimizer_step
from vggexp.training.timer import PhaseTimer

EpochMetrics = dict[str, Any]  # one object of metrics.jsonl


class Batches(Protocol):
    count: int  # images
    batches_per_epoch: int

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class TrainState:
    """What a run is at one instant: all that a checkpoint has to hold, since nothing random is stored."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: GradScaler
    ema: EMA | None
    sums: MetricSums  # of the epoch under way
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches taken of the epoch under way
    step: int = 0  # optimizer steps taken
    micro_batches: int = 1  # in which a batch is taken; doubled where the memory does not suffice
    history: list[EpochMetrics] = field(default_factory=list)  # a row for each finished epoch
    elapsed: dict[str, float] = field(
        default_factory=dict
    )  # the clock's times of the epoch under way

    def eval_model(self) -> nn.Module:
        """The weights that scores are taken with."""
        return self.ema.module if self.ema is not None else self.model

    def recent_loss(self) -> float:
        """Mean of the epoch under way, or of the last one where none is. Waits for the device."""
        return (
            self.sums.read("train")["train/loss"] if self.batch else self.history[-1]["train/loss"]
        )

    def close_epoch(self, row: EpochMetrics) -> None:
        self.history.append(row)
        self.epoch = self.epoch + 1
        self.batch = 0
        self.elapsed = {}
        self.sums.reset()

    def parts(self) -> dict[str, Any]:
        """What keeps a state of its own, each with state_dict and load_state_dict."""
        parts = {
            "net": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        return parts | {"sums": self.sums} | ({"ema": self.ema} if self.ema is not None else {})

    def capture(self) -> dict[str, Any]:
        """Tensors and plain values only; the tensors are those of the run, not copies."""
        counts = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "history": self.history,
        }
        counts |= {"micro_batches": self.micro_batches, "spent": self.elapsed}
        return counts | {name: part.state_dict() for name, part in self.parts().items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes over what `capture` gave. Raises KeyError, RuntimeError or ValueError where it does not fit."""
        given = [
            {key: group[key] for key in group if key != "params"}
            for group in self.optimizer.param_groups
        ]
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])
        for group, values in zip(self.optimizer.param_groups, given, strict=True):
            group.update(values)  # the configuration's, which resume=force may have changed
        self.epoch = saved["epoch"]
        self.batch = saved["batch"]
        self.step = saved["step"]
        self.history = saved["history"]
        self.elapsed = saved["spent"]
        self.micro_batches = saved["micro_batches"]


@dataclass(frozen=True)
class TrainSettings:
    """What stays the same through a run."""

    device: torch.device
    seed: int
    epochs: int
    batch_size: int
    label_smoothing: float
    clip_norm: float | None
    patience: int | None
    rest_minutes: float
    autocast: Callable[[], AbstractContextManager]
    gradients: Callable[..., tuple[Tensor, Tensor]] = (
        forward_backward  # or its stand-in for the device, vggexp.graphs
    )
    probe: DeadLayerCheck | None = None  # looks once, after so many steps, whether the net is dead


class Progress(Protocol):
    def update(self, images: int) -> None: ...


class Logger(Protocol):
    """What the loop tells while it runs; see vggexp.loggers.run_logger."""

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]: ...

    def epoch(self, row: EpochMetrics) -> None: ...

    def log(self, text: str) -> None: ...


class Checkpointer(Protocol):
    """Saves the state; see vggexp.training.checkpoint_manager."""

    def due(self) -> bool: ...

    def save(self, state: TrainState) -> None: ...


def train(
    state: TrainState,
    batches: Batches,
    plan: TrainSettings,
    clock: PhaseTimer,
    measure: Callable[[nn.Module], EpochMetrics],
    watcher: Logger,
    keeper: Checkpointer,
    stop: StopFlag,
) -> None:
    """Runs what is left of the run. `measure` scores the weights after an epoch.

    Raises DivergedError, with the last good checkpoint left or a dead net saved, and StoppedError, after saving.
    """
    guard = NonFiniteGuard(plan.device)
    clock.start(state.elapsed)
    while state.epoch < plan.epochs and not should_stop_early(state.history, plan.patience):
        train_epoch(state, batches, plan, clock, guard, watcher, keeper, stop)
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "lr": state.schedule.at(state.step - 1),
        }
        row |= state.sums.read("train") | measure(state.eval_model())
        clock.lap("evaluation")
        state.schedule.observe(row.get("val/accuracy"))
        row |= add_throughput(clock.read(), batches.count)
        state.close_epoch(row)
        clock.start()  # what follows is booked to the next epoch: this one's line is written
        keeper.save(state)
        clock.lap("checkpoint")
        watcher.epoch(row)
        clock.lap("logging")
        rest_minutes = plan.rest_minutes if state.epoch < plan.epochs else 0
        if rest_minutes:
            watcher.log(f"resting for {rest_minutes:g} minutes")
        stop.rest(rest_minutes * 60)
        clock.exclude_elapsed()
        stop.check(f"after epoch {state.epoch}")
    memory.trim_heap()


def train_epoch(
    state: TrainState,
    batches: Batches,
    plan: TrainSettings,
    clock: PhaseTimer,
    guard: NonFiniteGuard,
    watcher: Logger,
    keeper: Checkpointer,
    stop: StopFlag,
) -> None:
    """Takes what is left of the epoch, in the order and with the dropout that belong to it."""
    train_mode(state.model)
    save = partial(_save, state, batches, guard, keeper, clock)
    with watcher.progress(state.epoch + 1, batches.batches_per_epoch, state.batch) as progress:
        for images, labels in batches.train(state.epoch, state.batch):
            clock.lap("data")
            if plan.probe is not None and state.step == plan.probe.steps:
                check_dead_layers(state, plan.probe, images, labels, watcher, save)
            loss, logits = forward_backward_with_oom_retry(
                state, plan, guard, images, labels, watcher
            )
            state.sums.add(loss, logits, labels)
            clock.lap("compute")
            set_lr(state.optimizer, state.schedule.at(state.step))
            applied = optimizer_step(
                state.model, state.optimizer, state.scaler, guard, state.step, loss, plan.clip_norm
            )
            clock.lap("optimizer")
            if not applied:
                raise divergence_error(state, guard, batches.batches_per_epoch)
            state.step = state.step + 1
            state.batch = state.batch + 1
            if (
                state.batch == 1
            ):  # what the others free lies elsewhere, and would come on top of what it has left
                memory.trim_heap()
            if state.ema is not None:
                state.ema.update(state.model)
            progress.update(len(images) * collectives.world_size())
            clock.lap("logging")
            if stop.signal or keeper.due():
                save()
                clock.lap("checkpoint")
            stop.check(f"at epoch {state.epoch + 1} batch {state.batch}")
    if guard.first_nonfinite_step() is not None:
        raise divergence_error(state, guard, batches.batches_per_epoch)


def check_dead_layers(
    state: TrainState,
    probe: DeadLayerCheck,
    images: Tensor,
    labels: Tensor,
    watcher: Logger,
    save: Callable[[], None],
) -> None:
    """A net that does not learn says so, before this batch. Raises DivergedError, after saving, where asked."""
    found = probe.diagnose(
        state.model, images, labels, state.recent_loss()
    )  # by all: batch norm may ask all ranks
    finding = collectives.run_on_rank_zero(lambda: found)
    if finding is not None and probe.stop:
        save()
        raise DivergedError("; ".join([*finding.splitlines(), "train.stop_if_dead=false goes on"]))
    if finding is not None:
        watcher.log(f"warning: {finding}")


def forward_backward_with_oom_retry(
    state: TrainState,
    plan: TrainSettings,
    guard: NonFiniteGuard,
    images: Tensor,
    labels: Tensor,
    watcher: Logger,
) -> tuple[Tensor, Tensor]:
    """plan.gradients with the dropout that belongs to this step, split further until the memory suffices."""
    while True:
        seed_step(
            plan.seed,
            "step",
            state.epoch,
            state.batch,
            *([collectives.rank()] if collectives.rank() else []),
        )
        try:
            return plan.gradients(
                state.model,
                state.scaler,
                guard,
                images,
                labels,
                batch_size=plan.batch_size,
                micro_batches=state.micro_batches,
                label_smoothing=plan.label_smoothing,
                autocast=plan.autocast,
            )
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if collectives.world_size() > 1:  # the other ranks are in the middle of the same step
                raise ResourceError(oom_message(state, plan.batch_size)) from error
        double_micro_batches(
            state, plan.batch_size
        )  # after the handler, whose traceback holds the activations
        watcher.log(
            f"warning: out of memory; from here on a batch is taken in {state.micro_batches} micro-batches"
        )


def double_micro_batches(state: TrainState, batch_size: int) -> None:
    """Twice as many micro-batches: the same sum of gradients. Raises ResourceError where it would not be the same."""
    state.optimizer.zero_grad(set_to_none=True)  # of the parts that did fit
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in state.model.modules()):
        what = "to split the batch further would change what batch norm computes, so it is yours to choose: "
        raise ResourceError(oom_message(state, batch_size, what))
    if state.micro_batches >= batch_size:
        raise ResourceError(
            "out of memory with a single image; choose a smaller network or data.resize"
        )
    state.micro_batches = min(2 * state.micro_batches, batch_size)
    torch.cuda.empty_cache()  # nothing without a GPU


def oom_message(state: TrainState, batch_size: int, reason: str = "choose ") -> str:
    return (
        f"out of memory with data.batch_size={batch_size} and train.accumulate={state.micro_batches}; {reason}"
        f"train.accumulate={2 * state.micro_batches}, or a smaller data.batch_size"
    )


def _save(
    state: TrainState,
    batches: Batches,
    guard: NonFiniteGuard,
    keeper: Checkpointer,
    clock: PhaseTimer,
) -> None:
    """In the middle of an epoch, where an accelerator's flag has not been read since the last line."""
    if guard.first_nonfinite_step() is not None:
        raise divergence_error(state, guard, batches.batches_per_epoch)
    state.elapsed = clock.read()
    keeper.save(state)


def divergence_error(
    state: TrainState, guard: NonFiniteGuard, batches_per_epoch: int
) -> DivergedError:
    epoch, batch = divmod(guard.first_nonfinite_step() or 0, batches_per_epoch)
    lr = state.schedule.at(guard.first_nonfinite_step() or 0)
    return DivergedError(
        f"the loss or its gradient is not finite at epoch {epoch + 1} batch {batch + 1} with lr {lr:g}; "
        f"try optimizer.lr={lr / 10:g} or train.clip_norm=1"
    )


def should_stop_early(history: list[EpochMetrics], patience: int | None) -> bool:
    """Whether the last `patience` epochs brought no better validation accuracy."""
    if patience is None or len(history) <= patience:
        return False
    accuracies = [row["val/accuracy"] for row in history]
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])


def add_throughput(times: dict[str, float], images: int) -> dict[str, float]:
    aside = sum(times[f"time/{part}_seconds"] for part in ("evaluation", "checkpoint"))
    return {"images_per_second": images / max(1e-9, times["time/epoch_seconds"] - aside), **times}
