"""The training loop on one page. Read it from top to bottom to see what happens when."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from vggexp.distributed import collectives
from vggexp.errors import DivergedError, ResourceError, WaitStoppedError
from vggexp.models.transfer import train_mode
from vggexp.rng import seed_step
from vggexp.system import memory
from vggexp.system.signals import StopFlag
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.ema import EMA
from vggexp.training.metrics import MetricSums, point_interval
from vggexp.training.micro_batches import double_micro_batches, oom_message
from vggexp.training.optimizers import set_lr
from vggexp.training.schedules import Schedule
from vggexp.training.step import (
    Autocast,
    Batch,
    ForwardBackward,
    NonFiniteGuard,
    StepSettings,
    divergence_advice,
    forward_backward,
    optimizer_step,
)
from vggexp.training.timer import PhaseTimer, add_throughput

EpochMetrics = dict[str, Any]  # one line of metrics.jsonl
StepMetrics = dict[str, Any]  # one line of steps.jsonl


class Position(NamedTuple):
    """A point in a run. Positions compare in the order of training."""

    epoch: int  # finished epochs
    batch: int  # batches taken of the epoch under way


@dataclass
class TrainState:
    """State of one run: all that a checkpoint has to hold, since randomness is derived."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: GradScaler
    ema: EMA | None
    sums: MetricSums  # of the epoch under way
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches taken of the epoch under way
    step: int = 0  # optimizer steps taken
    micro_batches: int = 1  # per batch; doubled when the memory does not suffice
    history: list[EpochMetrics] = field(default_factory=list)  # one entry per finished epoch
    elapsed: dict[str, float] = field(default_factory=dict)  # the timer's of the epoch under way

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.batch)

    def lr(self, batch: int) -> float:
        """Returns the learning rate of a batch of the epoch under way, counted from 0."""
        # Not by `step`, because earlier epochs may have had another number of steps.
        return self.schedule.at(self.epoch * self.schedule.steps_per_epoch + batch)

    def eval_model(self) -> nn.Module:
        """Returns the model that is evaluated: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def recent_loss(self) -> float:
        """Returns the mean loss of the current or else of the last epoch. Waits for the device."""
        metrics = self.sums.read("train") if self.batch else self.history[-1]
        return metrics["train/loss"]

    def mean_loss(self) -> float:
        """Returns the mean loss of all batches until now. Waits for the device."""
        losses = [epoch["train/loss"] for epoch in self.history]
        # Epochs may differ in their steps: resume=force may have changed the batch size.
        ends = [0, *(epoch["step"] for epoch in self.history)]
        batches = [end - start for start, end in pairwise(ends)]
        return fmean([*losses, self.recent_loss()], [*batches, self.batch])

    def read_step(self, gradient_norm: Tensor) -> StepMetrics:
        """Returns the metrics after a step. Waits for the device and for all ranks."""
        position = {"epoch": self.epoch + 1, "step": self.step}
        lr = self.lr(self.batch - 1)
        return {**position, "lr": lr, **self.sums.read_since_last(gradient_norm)}

    def close_epoch(self, metrics: EpochMetrics) -> None:
        self.history.append(metrics)
        self.epoch = self.epoch + 1
        self.batch = 0
        self.elapsed = {}
        self.sums.reset()

    def components(self) -> dict[str, Any]:
        """Returns the parts with state_dict and load_state_dict, by their keys in a checkpoint."""
        components = {
            "net": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
            "sums": self.sums,
        }
        if self.ema is not None:
            components["ema"] = self.ema
        return components

    def capture(self) -> dict[str, Any]:
        """Returns tensors and plain values only. The tensors are those of the run, not copies."""
        content = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "history": self.history,
            "micro_batches": self.micro_batches,
            "spent": self.elapsed,
        }
        for name, component in self.components().items():
            content[name] = component.state_dict()
        return content

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what `capture` returned.

        Raises:
            KeyError, RuntimeError, ValueError: The checkpoint does not fit.
        """
        configured = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        for name, component in self.components().items():
            # Another schedule or number format may have had no state; it then begins here.
            if checkpoint[name] or name not in ("schedule", "scaler"):
                component.load_state_dict(checkpoint[name])
        # The configuration's values win, because resume=force may have changed the configuration.
        for group, values in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(values)
        self.epoch = checkpoint["epoch"]
        self.batch = checkpoint["batch"]
        self.step = checkpoint["step"]
        self.history = checkpoint["history"]
        self.elapsed = checkpoint["spent"]
        self.micro_batches = checkpoint["micro_batches"]


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
    autocast: Autocast
    forward_backward: ForwardBackward = forward_backward  # or CudaGraphStep, or DistributedStep
    dead_layer_check: DeadLayerCheck | None = None  # runs once, after a fixed number of steps
    log_steps: int | None = 0  # between two points of the curves; 0: none; None: point_interval


class Batches(Protocol):
    """Training data; see vggexp.data.loaders."""

    count: int  # images
    batches_per_epoch: int

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


class Progress(Protocol):
    def update(self, images: int, loss: Callable[[], float]) -> None: ...


class Logger(Protocol):
    """Reports what the loop does; see vggexp.loggers.run_logger."""

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]: ...

    def step(self, metrics: StepMetrics) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...

    def log(self, text: str) -> None: ...


class NullLogger:
    """Reports nothing."""

    def progress(self, epoch: int, batches: int, done: int) -> AbstractContextManager[Progress]:
        return nullcontext(self)

    def update(self, images: int, loss: Callable[[], float]) -> None: ...

    def step(self, metrics: StepMetrics) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...

    def log(self, text: str) -> None: ...


class Checkpointer(Protocol):
    """Saves the state; see vggexp.training.checkpoint_manager."""

    def is_due(self) -> bool: ...

    def save(self, state: TrainState) -> None: ...


class NullCheckpointer:
    """Saves nothing."""

    def is_due(self) -> bool:
        return False

    def save(self, state: TrainState) -> None: ...


@dataclass
class TrainLoop:
    """The settings of the loop and everything that the loop works with besides state and data."""

    settings: TrainSettings
    timer: PhaseTimer
    logger: Logger
    checkpointer: Checkpointer
    stop: StopFlag
    guard: NonFiniteGuard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.settings.device)


def step_settings(
    state: TrainState, settings: TrainSettings, guard: NonFiniteGuard
) -> StepSettings:
    return StepSettings(
        batch_size=settings.batch_size,
        label_smoothing=settings.label_smoothing,
        clip_norm=settings.clip_norm,
        autocast=settings.autocast,
        scaler=state.scaler,
        guard=guard,
        micro_batches=state.micro_batches,
    )


def train(
    state: TrainState,
    batches: Batches,
    loop: TrainLoop,
    evaluate: Callable[[nn.Module], EpochMetrics],
    until: Position | None = None,
) -> None:
    """Trains to the end of the run, or until a position.

    Args:
        evaluate: Returns the metrics of the model after an epoch.
        until: Position at which to return early. Position(2, 0) is after the second epoch, with all
            that belongs to its end. A position inside an epoch leaves the epoch open.

    Raises:
        DivergedError: The loss or a gradient is not finite, and the last good checkpoint stays. Or
            the model is dead, and has been saved.
        StoppedError: A stop signal has come, and the state has been saved.
    """
    settings = loop.settings
    timer = loop.timer
    timer.start(state.elapsed)
    while not is_done(state, settings, until):
        epoch_batches = batches.train(state.epoch, state.batch)
        if until is not None and until.epoch == state.epoch:
            epoch_batches = islice(epoch_batches, until.batch - state.batch)
        try:
            train_epoch(state, epoch_batches, loop)
            if has_reached(state, until):
                break
            metrics: EpochMetrics = {"epoch": state.epoch + 1, "step": state.step}
            metrics["lr"] = state.lr(state.batch - 1)
            metrics |= state.sums.read("train") | evaluate(state.eval_model())
        except WaitStoppedError:  # of the loader, which waited for an image
            if collectives.world_size() == 1:  # all ranks save together, and this one is alone
                save_within_epoch(state, loop)
            raise
        timer.lap("evaluation")
        state.schedule.observe(metrics.get("val/accuracy"), state.epoch + 1)
        metrics |= add_throughput(timer.read(), batches.count)
        state.close_epoch(metrics)
        timer.start()  # the time from here on belongs to the next epoch: this epoch's line is made
        loop.checkpointer.save(state)
        timer.lap("checkpoint")
        loop.logger.epoch(metrics)
        timer.lap("logging")
        rest_minutes = 0 if is_done(state, settings, until) else settings.rest_minutes
        if rest_minutes:
            loop.logger.log(f"resting for {rest_minutes:g} minutes")
        loop.stop.rest(rest_minutes * 60)
        timer.exclude_elapsed()
        loop.stop.check(f"after epoch {state.epoch}")
    memory.trim_heap()


def train_epoch(state: TrainState, batches: Iterable[Batch], loop: TrainLoop) -> None:
    """Trains on the remaining batches of the epoch, each with the dropout that belongs to it."""
    settings = loop.settings
    timer = loop.timer
    check = settings.dead_layer_check
    total = state.schedule.steps_per_epoch
    log_steps = point_interval(total) if settings.log_steps is None else settings.log_steps
    train_mode(state.model)
    with loop.logger.progress(state.epoch + 1, total, state.batch) as progress:
        for images, labels in batches:
            timer.lap("data")
            if check is not None and state.step == check.steps:
                check_dead_layers(state, (images, labels), check, loop)
            loss, logits = forward_backward_with_oom_retry(state, (images, labels), loop)
            state.sums.add(loss, logits, labels)
            timer.lap("compute")
            set_lr(state.optimizer, state.lr(state.batch))
            step_cfg = step_settings(state, settings, loop.guard)
            update = optimizer_step(state.model, state.optimizer, loss, state.step, step_cfg)
            if not update.applied:
                raise_if_diverged(state, loop)
            state.step += 1
            state.batch += 1
            if state.ema is not None:
                state.ema.update(state.model)
            timer.lap("optimizer")
            if state.batch == 1:
                # Evaluation and checkpoints freed memory at other addresses. Without this call the
                # epoch's peak would come on top of that memory.
                memory.trim_heap()
            if log_steps and state.step % log_steps == 0:
                loop.logger.step(state.read_step(update.gradient_norm))
            progress.update(len(images) * collectives.world_size(), state.sums.mean_loss)
            timer.lap("logging")
            if loop.stop.signal or loop.checkpointer.is_due():
                save_within_epoch(state, loop)
                timer.lap("checkpoint")
            loop.stop.check(f"at epoch {state.epoch + 1} batch {state.batch}")
    raise_if_diverged(state, loop)


def is_done(state: TrainState, settings: TrainSettings, until: Position | None) -> bool:
    return is_trained(state, settings.epochs, settings.patience) or has_reached(state, until)


def is_trained(state: TrainState, epochs: int, patience: int | None) -> bool:
    """Returns whether the run has no epoch left, be it by `patience`."""
    return state.epoch >= epochs or should_stop_early(state.history, patience)


def has_reached(state: TrainState, until: Position | None) -> bool:
    return until is not None and state.position >= until


def should_stop_early(history: list[EpochMetrics], patience: int | None) -> bool:
    """Returns whether the last `patience` epochs brought no better validation accuracy.

    Epochs without a validation split do not count: resume=force may have added the split later.
    """
    accuracies = [row["val/accuracy"] for row in history if "val/accuracy" in row]
    if patience is None or len(accuracies) <= patience:
        return False
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])


def save_within_epoch(state: TrainState, loop: TrainLoop) -> None:
    """Saves unless the run has diverged: an accelerator's flag was last read at the last line."""
    raise_if_diverged(state, loop)
    state.elapsed = loop.timer.read()
    loop.checkpointer.save(state)


def raise_if_diverged(state: TrainState, loop: TrainLoop) -> None:
    """Raises DivergedError if a step was not finite. Waits for the device and for all ranks."""
    step = loop.guard.first_nonfinite_step()
    if step is None:
        return
    batch = state.batch - (state.step - step)  # of the epoch under way
    lr = state.lr(batch)
    raise DivergedError(
        f"the loss or its gradient is not finite at epoch {state.epoch + 1} batch {batch + 1} "
        f"with lr {lr:g}; " + divergence_advice(state.schedule.lr, loop.settings.clip_norm)
    )


def check_dead_layers(
    state: TrainState, batch: Batch, check: DeadLayerCheck, loop: TrainLoop
) -> None:
    """Warns if the model is dead or the steps are too large.

    Saves and raises DivergedError if the model is dead and `check.stop` is set.
    """
    # Every rank has to run the check, because batch norm may reduce over the ranks.
    own_diagnosis = check.diagnose(state.model, batch, state.recent_loss(), state.mean_loss())
    diagnosis = collectives.run_on_rank_zero(lambda: own_diagnosis)
    if diagnosis is None:
        return
    if check.stop and diagnosis.is_dead:
        save_within_epoch(state, loop)
        lines = [*diagnosis.text.splitlines(), "train.stop_if_dead=false goes on"]
        raise DivergedError("; ".join(lines))
    loop.logger.log(f"warning: {diagnosis.text}")


def forward_backward_with_oom_retry(
    state: TrainState, batch: Batch, loop: TrainLoop
) -> tuple[Tensor, Tensor]:
    """Runs `settings.forward_backward`, with more micro-batches each time the memory runs out.

    Every attempt draws the dropout that belongs to this step.
    """
    settings = loop.settings
    key = ["step", state.epoch, state.batch]
    if collectives.rank():
        key.append(collectives.rank())
    while True:
        seed_step(settings.seed, *key)
        try:
            step_cfg = step_settings(state, settings, loop.guard)
            return settings.forward_backward(state.model, batch, step_cfg)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if collectives.world_size() > 1:  # the other ranks are in the middle of the same step
                message = oom_message(state.micro_batches, settings.batch_size)
                raise ResourceError(message) from error
        # This comes after the handler, because the traceback holds the activations.
        state.optimizer.zero_grad(set_to_none=True)  # gradients of the micro-batches that did fit
        state.micro_batches = double_micro_batches(
            state.model, state.micro_batches, settings.batch_size
        )
        loop.logger.log(
            "warning: out of memory; from here on a batch is taken in "
            f"{state.micro_batches} micro-batches"
        )
