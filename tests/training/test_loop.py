"""The loop: the same weights every time, the same metrics, and its ways to stop."""

import contextlib
import itertools
import signal
import time
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.factories import (
    CPU,
    Blobs,
    RecordingCheckpointer,
    RecordingLogger,
    evaluate_blobs,
    flat_weights,
    make_loop,
    make_model,
    make_schedule,
    make_state,
    run_training,
)
from vggexp.errors import DivergedError, ResourceError, StoppedError, WaitStoppedError
from vggexp.models.shapes import Block, vgg_layers
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.loop import (
    Position,
    TrainState,
    check_dead_layers,
    should_stop_early,
    train,
    train_epoch,
)
from vggexp.training.timer import PARTS, PhaseTimer

METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def metrics_of(state: TrainState) -> list[list[float]]:
    return [[row[key] for key in METRICS] for row in state.history]


def test_the_same_run_is_the_same_to_the_last_bit():
    def trained(torch_seed: int, model_seed: int = 0, seed: int = 0) -> TrainState:
        state = make_state(make_model(model_seed, norm="batch"))
        torch.manual_seed(torch_seed)
        run_training(state, seed=seed)
        return state

    first = trained(1)
    second = trained(2)
    other_dropout = trained(1, seed=1)
    other_weights = trained(1, model_seed=1)
    assert torch.equal(flat_weights(first), flat_weights(second))
    assert metrics_of(first) == metrics_of(second)
    assert not torch.equal(flat_weights(first), flat_weights(other_dropout))
    assert not torch.equal(flat_weights(first), flat_weights(other_weights))


STEP_KEYS = ["epoch", "step", "lr", "loss", "accuracy", "gradient_norm"]


def test_the_points_of_the_curves():
    logger = run_training(make_state(), epochs=2, log_steps=2)
    assert [list(row) for row in logger.steps] == [STEP_KEYS] * 3
    assert [(row["epoch"], row["step"]) for row in logger.steps] == [(1, 2), (2, 4), (2, 6)]
    # Images of a point between two epochs: 16 of the first epoch; of the second, 8 and then 14.
    second, third = logger.steps[1:]
    loss = (8 * second["loss"] + 14 * third["loss"]) / 22
    assert loss == pytest.approx(logger.rows[1]["train/loss"])
    assert second["lr"] == 0.05
    assert second["gradient_norm"] > 0


def test_the_curves_change_no_bit_of_a_run():
    trained = []
    for log_steps in (0, 1, 2, None):
        state = make_state(make_model(norm="batch"), ema_decay=0.9)
        run_training(state, log_steps=log_steps)
        trained.append((flat_weights(state), metrics_of(state)))
    for weights, metrics in trained[1:]:
        assert torch.equal(weights, trained[0][0])
        assert metrics == trained[0][1]


def test_a_run_without_points_has_none():
    assert run_training(make_state(), log_steps=0).steps == []


def test_a_point_is_one_read(monkeypatch):
    reads = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(tensor) or tolist(tensor))

    def count(log_steps: int) -> int:
        reads.clear()
        run_training(make_state(), epochs=1, log_steps=log_steps)
        return len(reads)

    assert [count(1) - count(0), count(3) - count(0)] == [3, 1]


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_resumed_run_has_the_points_of_an_uninterrupted_one(step):
    uninterrupted = make_state()
    checkpointer = RecordingCheckpointer(uninterrupted, step)
    points = run_training(uninterrupted, checkpointer=checkpointer, log_steps=2).steps
    resumed = make_state()
    resumed.restore(checkpointer.saved[step])
    later = run_training(resumed, log_steps=2).steps
    assert later == [point for point in points if point["step"] > step]


SCHEDULES = {
    "cosine": {"final_factor": 0},
    "plateau": {"gamma": 0.5, "patience": 0, "threshold": 0},
}


@pytest.mark.catalog
@pytest.mark.parametrize("step", [1, 3, 4, 6, 11, 12])  # first, middle and last batch, and the end
@pytest.mark.parametrize("ema_decay", [None, 0.8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_ends_with_the_same_bits(schedule, ema_decay, step):
    def fresh() -> TrainState:
        return make_state(
            schedule=make_schedule(schedule, **SCHEDULES[schedule]), ema_decay=ema_decay
        )

    uninterrupted = fresh()
    checkpointer = RecordingCheckpointer(uninterrupted, step)
    run_training(uninterrupted, checkpointer=checkpointer)
    resumed = fresh()
    torch.manual_seed(step)
    resumed.restore(checkpointer.saved[step])
    run_training(resumed)
    assert torch.equal(flat_weights(uninterrupted), flat_weights(resumed))
    assert metrics_of(uninterrupted) == metrics_of(resumed)


def test_an_epoch_depends_on_nothing_but_the_state():
    schedule = make_schedule("cosine", final_factor=0)
    at_once = make_state(schedule=schedule)
    in_parts = make_state(schedule=schedule)
    seeds = []

    def record_seed(model: nn.Module, _: object) -> None:
        if model.training:
            seeds.append(torch.initial_seed())

    at_once.model.register_forward_pre_hook(record_seed)
    run_training(at_once)
    assert len(seeds) == 12
    assert len(set(seeds)) == 12  # every step has its own dropout
    for epochs in (2, 4, 4):  # the third call finds nothing left to do
        run_training(in_parts, epochs=epochs)
        in_parts.model.eval()
    assert torch.equal(flat_weights(at_once), flat_weights(in_parts))
    assert in_parts.epoch == 4
    assert in_parts.step == 12
    assert len(in_parts.history) == 4


@pytest.mark.parametrize("until", [(0, 1), (1, 0), (1, 2), (2, 3), (3, 0)])
def test_training_until_a_position_and_from_there(until):
    at_once = make_state()
    in_parts = make_state()
    run_training(at_once)
    run_training(in_parts, until=Position(*until))
    assert in_parts.position == until
    assert in_parts.step == 3 * until[0] + until[1]
    assert len(in_parts.history) == until[0]
    run_training(in_parts, until=Position(*until))  # already there
    assert in_parts.position == until
    run_training(in_parts)
    assert torch.equal(flat_weights(at_once), flat_weights(in_parts))
    assert metrics_of(at_once) == metrics_of(in_parts)


@pytest.mark.parametrize("end", [{"until": Position(2, 0)}, {"patience": 1}])
def test_a_run_does_not_rest_after_its_last_epoch(end):
    evaluate = lambda _: {"val/accuracy": 0.5}  # noqa: E731
    logger = run_training(make_state(), evaluate_model=evaluate, rest_minutes=1e-4, **end)
    assert logger.messages == ["resting for 0.0001 minutes"]


class UnreadableBlobs(Blobs):
    """Waits for an image in vain after one batch of the second epoch, until a signal ends the wait.

    With a whole epoch of batches, the wait is in the evaluation of the second epoch.
    """

    def __init__(self, batches: int):
        super().__init__()
        self.readable = batches

    def train(self, epoch: int, start: int = 0):
        for index, batch in enumerate(super().train(epoch, start)):
            if epoch == 1 and index == self.readable:
                raise WaitStoppedError(15, "while an image was awaited", "go on")
            yield batch

    def evaluate(self, model):
        self.evaluated = getattr(self, "evaluated", 0) + 1
        if self.evaluated == 2:
            raise WaitStoppedError(15, "while an image was awaited", "go on")
        return evaluate_blobs(model)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_wait_that_a_signal_ends_is_saved(batches):
    state = make_state()
    checkpointer = RecordingCheckpointer()
    blobs = UnreadableBlobs(batches)
    with pytest.raises(WaitStoppedError):
        run_training(state, blobs, blobs.evaluate, checkpointer)
    assert max(checkpointer.saved) == 3 + batches
    resumed = make_state()
    resumed.restore(checkpointer.saved[3 + batches])
    run_training(resumed)
    expected = make_state()
    run_training(expected)
    assert torch.equal(flat_weights(resumed), flat_weights(expected))
    assert metrics_of(resumed) == metrics_of(expected)


def test_the_metrics_of_an_epoch():
    state = make_state(schedule=make_schedule("step", lr=0.25, milestones=[1], gamma=0.5))
    logger = run_training(state, epochs=2)
    keys = ["epoch", "step", "lr", *METRICS, "images_per_second", "time/epoch_seconds"]
    keys += [f"time/{part}_seconds" for part in PARTS]
    assert [list(row) for row in logger.rows] == [keys, keys]
    assert [row["epoch"] for row in logger.rows] == [1, 2]
    assert [row["step"] for row in logger.rows] == [3, 6]
    assert [row["lr"] for row in logger.rows] == [0.25, 0.125]
    assert logger.rows == state.history
    assert logger.images_seen == [[1, 3, 22], [2, 3, 22]]
    last = logger.rows[-1]
    assert evaluate_blobs(state.model).items() <= last.items()
    epoch_seconds = last["time/epoch_seconds"]
    part_seconds = sum(last[f"time/{part}_seconds"] for part in PARTS)
    assert part_seconds > 0
    assert part_seconds <= epoch_seconds
    training_seconds = epoch_seconds - last["time/evaluation_seconds"]
    training_seconds -= last["time/checkpoint_seconds"]
    assert last["images_per_second"] == pytest.approx(22 / training_seconds)


class OutOfMemoryModel(nn.Module):
    """Asks the real allocator for more than any machine has, for more than `room` images."""

    def __init__(self, model: nn.Module, room: int):
        super().__init__()
        self.model = model
        self.room = room

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        if self.training and len(images) > self.room:
            torch.empty(1 << 60)
        return logits


def make_hungry_state(room: int, norm: str) -> TrainState:
    return make_state(OutOfMemoryModel(make_model(norm=norm), room))


@pytest.mark.parametrize(("room", "micro_batches"), [(8, 1), (4, 2), (3, 4), (1, 8)])
def test_a_batch_that_does_not_fit_is_split(room, micro_batches):
    state = make_hungry_state(room, "none")
    logger = run_training(state)
    assert state.micro_batches == micro_batches
    assert bool(logger.messages) == (micro_batches > 1)
    assert all("micro-batches" in message for message in logger.messages)
    split_from_the_start = make_hungry_state(room, "none")
    split_from_the_start.micro_batches = micro_batches
    run_training(split_from_the_start)
    assert torch.equal(flat_weights(state), flat_weights(split_from_the_start))
    assert state.capture()["micro_batches"] == micro_batches


def test_gradients_from_before_the_memory_ran_out_do_not_count():
    state = make_hungry_state(8, "none")
    state.micro_batches = 2
    rooms = itertools.chain([8, 0], itertools.repeat(8))  # the second micro-batch does not fit
    state.model.register_forward_pre_hook(lambda model, _: setattr(model, "room", next(rooms)))
    run_training(state)
    split_from_the_start = make_hungry_state(8, "none")
    split_from_the_start.micro_batches = 4
    run_training(split_from_the_start)
    assert torch.equal(flat_weights(state), flat_weights(split_from_the_start))


@pytest.mark.parametrize(
    ("room", "norm", "message"), [(4, "batch", "what batch norm computes"), (0, "none", "a single")]
)
def test_a_batch_that_cannot_be_split(room, norm, message):
    with pytest.raises(ResourceError, match=message):
        run_training(make_hungry_state(room, norm))


def test_it_learns():
    rows = run_training(make_state(), epochs=12).rows
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 3
    assert rows[-1]["val/accuracy"] == 1


@pytest.mark.parametrize(("epoch", "batch", "lr"), [(0, 0, 0.04), (1, 2, 0.04), (2, 1, 0.02)])
def test_divergence_names_its_epoch_and_batch(epoch, batch, lr):
    state = make_state(schedule=make_schedule("step", lr=0.04, milestones=[2], gamma=0.5))
    message = rf"at epoch {epoch + 1} batch {batch + 1} with lr {lr}; try optimizer.lr=0.004 or"
    with pytest.raises(DivergedError, match=message):
        run_training(state, batches=Blobs(nonfinite=(epoch, batch)))
    assert state.epoch == epoch
    assert state.step == 3 * epoch + batch
    assert len(state.history) == epoch
    assert all(weight.isfinite().all() for weight in state.model.parameters())


def test_divergence_names_its_epoch_after_epochs_of_another_number_of_steps():
    """resume=force may change the batch size."""
    state = make_state()
    state.epoch = 1
    state.step = 12
    with pytest.raises(DivergedError, match="at epoch 2 batch 3 with"):
        run_training(state, batches=Blobs(nonfinite=(1, 2)))


def test_divergence_at_rate_zero_suggests_a_rate_above_zero():
    cycle = {"peak_fraction": 0.3, "initial_factor": 0.1, "final_factor": 0}
    state = make_state(schedule=make_schedule("onecycle", lr=0.04, epochs=1, **cycle))
    with pytest.raises(DivergedError, match=r"with lr 0; try optimizer\.lr=0\.004 or"):
        run_training(state, batches=Blobs(nonfinite=(0, 2)), epochs=1)


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [([None, None], False), ([None, 0.2], False), ([None, 0.2, 0.2], True), ([0.2, None], False)],
)
def test_epochs_without_a_validation_split_stop_nothing(accuracies, stops):
    """resume=force may add or remove the split."""
    history = [{} if value is None else {"val/accuracy": value} for value in accuracies]
    assert should_stop_early(history, 1) == stops


@pytest.mark.parametrize(("patience", "epochs"), [(None, 7), (1, 3), (2, 6), (3, 7)])
def test_the_validation_accuracy_lowers_the_rate_and_stops(patience, epochs):
    accuracies = [0.1, 0.5, 0.5, 0.6, 0.4, 0.6, 0.7]
    metrics = iter([{"val/accuracy": accuracy} for accuracy in accuracies])
    state = make_state(
        schedule=make_schedule("plateau", lr=0.5, gamma=0.1, patience=1, threshold=0)
    )
    logger = run_training(
        state, evaluate_model=lambda model: next(metrics), epochs=7, patience=patience
    )
    rates = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.05]
    assert [row["val/accuracy"] for row in logger.rows] == accuracies[:epochs]
    assert [row["lr"] for row in logger.rows] == pytest.approx(rates[:epochs])


def test_averaged_weights():
    state = make_state(ema_decay=0.75)
    plain = make_state()
    after_steps = []
    evaluated = []

    def record_weights(*_: object) -> None:
        after_steps.append([weight.detach().clone() for weight in state.model.parameters()])

    def record_model(model: nn.Module) -> dict[str, float]:
        evaluated.append(model)
        return {}

    state.optimizer.register_step_post_hook(record_weights)
    run_training(state, epochs=2, evaluate_model=record_model)
    run_training(plain, epochs=2)
    assert evaluated == [state.ema.module] * 2
    expected = after_steps[0]
    for weights in after_steps[1:]:
        expected = [
            0.75 * average + 0.25 * weight
            for average, weight in zip(expected, weights, strict=True)
        ]
    for actual, average in zip(state.eval_model().parameters(), expected, strict=True):
        torch.testing.assert_close(actual.detach(), average)
    assert torch.equal(flat_weights(state), flat_weights(plain))  # the average changes no training


LAYERS = vgg_layers([Block(1, 8)], "batch", (16,), 1, in_channels=1, size=4, classes=4)


@pytest.mark.parametrize("step", [1, 3, 4, 11])  # in the middle of an epoch, and at its start
def test_a_check_for_dead_layers_changes_no_bit(step):
    check = DeadLayerCheck(step, LAYERS, ["a=1"], [], False, loss_margin=100, min_signal=100)
    unchecked = make_state(ema_decay=0.8)
    checked = make_state(ema_decay=0.8)
    run_training(unchecked)
    (message,) = run_training(checked, dead_layer_check=check).messages
    assert f"after {step} steps" in message
    assert torch.equal(flat_weights(unchecked), flat_weights(checked))
    assert metrics_of(unchecked) == metrics_of(checked)


def test_a_model_that_learns_gets_no_warning():
    check = DeadLayerCheck(30, LAYERS, [], [], stop=True)
    assert run_training(make_state(), epochs=12, dead_layer_check=check).messages == []


@pytest.mark.parametrize(("step", "warnings"), [(6, 1), (9, 0)])  # by step 9 it has recovered
def test_steps_that_are_too_large_are_reported_and_stop_nothing(step, warnings):
    check = DeadLayerCheck(step, LAYERS, ["a=1"], ["b=2"], stop=True)
    state = make_state(schedule=make_schedule(lr=1))
    messages = run_training(state, epochs=4, dead_layer_check=check).messages
    assert state.epoch == 4
    assert len(messages) == warnings
    mean = sum(epoch["train/loss"] for epoch in state.history[:2]) / 2
    for message in messages:
        assert message == (
            f"warning: after 6 steps the mean loss is above that of guessing (loss {mean:.4f}, "
            "ln 4 = 1.3863): the steps are too large\nadvice   try b=2"
        )


def test_a_model_that_has_learned_before_it_died_is_reported():
    check = DeadLayerCheck(30, LAYERS, ["a=1"], [], stop=False)
    state = make_state()
    nn.init.zeros_(state.model[-1][-1].weight)
    batch = next(Blobs().train(0))
    logger = RecordingLogger()
    for loss in (0.1, 1.39):
        state.step += 3
        state.history.append({"train/loss": loss, "step": state.step})
        check_dead_layers(state, batch, check, make_loop(logger))
    (message,) = logger.messages
    assert "output is dead" in message


def test_the_mean_loss_is_that_of_all_batches():
    state = make_state()
    state.history.append({"train/loss": 4.0, "step": 3})
    assert state.mean_loss() == 4
    state.history.append({"train/loss": 2.0, "step": 5})  # resume=force took larger batches
    assert state.mean_loss() == (3 * 4 + 2 * 2) / 5
    state.sums.add(torch.tensor(1.0 * 8), torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))
    state.batch = 1
    assert state.mean_loss() == (3 * 4 + 2 * 2 + 1) / 6


class SlowPart:
    """Sleeps in one part of the loop: batches, checkpointer and logger in one."""

    count = 22
    batches_per_epoch = 3

    def __init__(self, part: str, seconds: float, sleep=time.sleep):
        self.part = part
        self.seconds = seconds
        self._sleep = sleep

    def sleep(self, part: str) -> None:
        if part == self.part:
            self._sleep(self.seconds)

    def train(self, epoch: int, start: int = 0):
        for batch in Blobs().train(epoch, start):
            self.sleep("data")
            yield batch

    def evaluate(self, model):
        self.sleep("evaluation")
        return evaluate_blobs(model)

    def is_due(self) -> bool:
        return True

    def save(self, state: TrainState) -> None:
        self.sleep("checkpoint")

    def progress(self, *_):
        return contextlib.nullcontext(self)

    def update(self, images: int, loss: object) -> None:
        self.sleep("logging")

    def epoch(self, row) -> None: ...


SLOW_PARTS = ["data", "compute", "optimizer", "evaluation", "checkpoint", "logging"]


def run_slow_training(slow: SlowPart, timer: PhaseTimer) -> TrainState:
    state = make_state()
    state.model.register_full_backward_pre_hook(lambda *_: slow.sleep("compute"))
    state.optimizer.register_step_pre_hook(lambda *_: slow.sleep("optimizer"))
    train(state, slow, make_loop(slow, slow, timer, epochs=2), slow.evaluate)
    return state


@pytest.mark.parametrize("part", SLOW_PARTS)
def test_a_sleep_is_booked_to_its_part(part):
    state = run_slow_training(SlowPart(part, 0.02), PhaseTimer(CPU))
    sleeps = 1 if part == "evaluation" else 3
    assert all(row[f"time/{part}_seconds"] >= 0.02 * sleeps for row in state.history)


@pytest.mark.parametrize("part", SLOW_PARTS)
def test_a_sleep_is_booked_whole_and_nowhere_else(part):
    """The clock advances only by the sleeps, so the machine has no influence on the numbers."""
    sleeps: list[float] = []
    timer = PhaseTimer(CPU, clock=lambda: sum(sleeps))
    state = run_slow_training(SlowPart(part, 0.005, sleep=sleeps.append), timer)
    rows = [*state.history, timer.read()]  # the time after the last epoch is in no row
    booked = {other: sum(row[f"time/{other}_seconds"] for row in rows) for other in PARTS}
    expected = dict.fromkeys(PARTS, 0.0)
    expected[part] = sum(sleeps)
    assert booked == pytest.approx(expected)
    count = {"evaluation": 2, "checkpoint": 8}.get(part, 6)
    assert sum(sleeps) == pytest.approx(0.005 * count)
    assert sum(row["time/epoch_seconds"] for row in rows) == pytest.approx(sum(sleeps))


@pytest.mark.parametrize(
    ("epoch", "step"),
    [(0, 0), (1, 3), (1, 5)],  # the last after resume=force with another batch size
)
def test_each_step_has_the_rate_of_its_schedule(epoch, step):
    state = make_state(schedule=make_schedule("cosine", final_factor=0, warmup_epochs=1))
    state.epoch = epoch
    state.step = step
    rates = []
    state.optimizer.register_step_pre_hook(
        lambda *_: rates.append(state.optimizer.param_groups[0]["lr"])
    )
    run_training(state)
    assert rates == [state.schedule.at(step) for step in range(3 * epoch, 12)]


def test_the_configured_arguments_of_the_optimizer_win_over_those_of_a_checkpoint():
    saved = make_state()
    run_training(saved, until=Position(1, 0))
    nesterov = partial(torch.optim.SGD, momentum=0.5, nesterov=True, fused=True)
    state = make_state(optimizer=nesterov)
    state.restore(saved.capture())
    (group,) = state.optimizer.param_groups
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
    assert len(state.optimizer.state) == len(saved.optimizer.state)  # the momentum goes on


def test_the_moving_average_is_a_part_of_the_optimizer_time(monkeypatch):
    state = make_state(ema_decay=0.9)
    loop = make_loop()
    calls = []
    monkeypatch.setattr(state.ema, "update", lambda _: calls.append("average"))
    monkeypatch.setattr(loop.timer, "lap", calls.append)
    train_epoch(state, Blobs().train(0), loop)
    assert calls[:4] == ["data", "compute", "average", "optimizer"]


def test_a_run_rests_the_configured_minutes_between_its_epochs(monkeypatch):
    loop = make_loop(rest_minutes=2.0, epochs=3)
    seconds = []
    monkeypatch.setattr(loop.stop, "rest", seconds.append)
    train(make_state(), Blobs(), loop, evaluate_blobs)
    assert seconds == [120, 120, 0]


def test_a_checkpoint_holds_the_times_of_an_open_epoch_only():
    state = make_state()
    checkpointer = RecordingCheckpointer(state, step=4)
    run_training(state, checkpointer=checkpointer)
    assert checkpointer.saved[4]["spent"]
    assert [checkpointer.saved[step]["spent"] for step in (3, 6, 9, 12)] == [{}] * 4


@pytest.mark.parametrize("due_step", [None, 5])  # the epoch's checkpoint, and one inside it
def test_a_divergence_that_is_read_late_is_in_no_checkpoint(due_step):
    state = make_state()
    checkpointer = RecordingCheckpointer(state, due_step)
    loop = make_loop(checkpointer=checkpointer)
    loop.guard.on_cpu = False  # as on an accelerator
    with pytest.raises(DivergedError, match="at epoch 2 batch 1 with"):
        train(state, Blobs(nonfinite=(1, 0)), loop, evaluate_blobs)
    assert list(checkpointer.saved) == [3]


def test_a_signal_saves_and_stops_after_the_batch():
    state = make_state()
    checkpointer = RecordingCheckpointer()
    loop = make_loop(checkpointer=checkpointer)

    def stop(*_: object) -> None:
        if state.step == 4:
            loop.stop.signal = signal.SIGTERM

    state.optimizer.register_step_post_hook(stop)
    with pytest.raises(StoppedError, match="stopped by SIGTERM at epoch 2 batch 2"):
        train(state, Blobs(), loop, evaluate_blobs)
    assert list(checkpointer.saved) == [3, 5]


@pytest.mark.catalog
def test_gradients_of_a_part_that_did_fit_are_not_counted_twice():
    def trained(micro_batches: int, failing_call: int) -> TrainState:
        state = make_state(make_model())
        state.micro_batches = micro_batches
        calls = []

        def run_out_of_memory(*_: object) -> None:
            calls.append(1)
            if len(calls) == failing_call:
                torch.empty(1 << 60)

        state.model.register_forward_pre_hook(run_out_of_memory)
        run_training(state)
        return state

    failed = trained(micro_batches=2, failing_call=2)
    assert failed.micro_batches == 4
    assert torch.equal(flat_weights(failed), flat_weights(trained(4, failing_call=0)))
