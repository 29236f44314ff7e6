"""The loop: the same weights every time, the same record, and its ways to stop."""

import contextlib
import copy
import math
import time

import pytest
import torch
from torch import Tensor, nn

from vggexp.errors import DivergedError, ResourceError
from vggexp.models.init import initialize
from vggexp.models.shapes import Block, vgg_layers
from vggexp.models.vgg import vgg
from vggexp.rng import generator
from vggexp.system.signals import StopFlag
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.ema import EMA
from vggexp.training.loop import TrainSettings, TrainState, train
from vggexp.training.metrics import MetricSums, evaluate
from vggexp.training.precision import scaler
from vggexp.training.schedules import build_schedule
from vggexp.training.timer import PARTS, PhaseTimer

CPU = torch.device("cpu")
SCORES = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


class Blobs:
    """Four classes, each a bright corner of a noisy picture; 22 images in batches of 8, so that the last is short."""

    count, batches_per_epoch = 22, 3

    def __init__(self, bad: tuple[int, int] | None = None):
        self.bad = bad  # epoch and batch of an image that is not finite
        self.labels = torch.arange(22) % 4
        self.images = 0.3 * torch.randn(22, 1, 4, 4, generator=generator(0, "blobs"))
        self.images.view(22, 2, 2, 2, 2)[range(22), self.labels // 2, :, self.labels % 2] += 1

    def train(self, epoch: int, start: int = 0):
        order = torch.randperm(22, generator=generator(0, "order", epoch)).split(8)
        for batch, chosen in list(enumerate(order))[start:]:
            yield (
                self.images[chosen] * (math.nan if (epoch, batch) == self.bad else 1),
                self.labels[chosen],
            )


class Recorder:
    def __init__(self):
        self.rows, self.seen, self.notes = [], [], []

    def progress(self, epoch: int, batches: int, done: int):
        self.seen.append([epoch, batches, 0])
        return contextlib.nullcontext(self)

    def update(self, images: int) -> None:
        self.seen[-1][-1] += images

    def epoch(self, row) -> None:
        self.rows.append(row)

    def log(self, text: str) -> None:
        self.notes.append(text)


class Keeper:
    """Copies the state at the step `at`, and after every epoch."""

    def __init__(self, state: TrainState | None = None, at: int | None = None):
        self.state, self.at, self.saved = state, at, {}

    def due(self) -> bool:
        return self.state is not None and self.state.step == self.at

    def save(self, state: TrainState) -> None:
        self.saved[state.step] = copy.deepcopy(state.capture())


def fresh(lr=0.05, seed=0, ema=None, course="constant", norm="batch", **own) -> TrainState:
    model = vgg(
        [Block(1, 8)],
        norm=norm,
        hidden=(16,),
        dropout=0.3,
        width=1,
        in_channels=1,
        size=4,
        classes=4,
    )
    initialize(model, "kaiming", seed)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, fused=True)
    average = EMA(model, ema) if ema else None
    course = build_schedule(course, lr, 0, epochs=4, steps_per_epoch=3, **own)
    return TrainState(model, optimizer, course, scaler("fp32", CPU), average, MetricSums(CPU))


def scores(model):
    return evaluate(model, [(Blobs().images, Blobs().labels)], CPU, contextlib.nullcontext, "val")


def trained(
    state: TrainState,
    epochs=4,
    seed=0,
    batches=None,
    measure=scores,
    patience=None,
    keeper=None,
    probe=None,
) -> Recorder:
    plan = TrainSettings(
        device=CPU,
        seed=seed,
        epochs=epochs,
        batch_size=8,
        label_smoothing=0.0,
        clip_norm=None,
        patience=patience,
        rest_minutes=0.0,
        autocast=contextlib.nullcontext,
        probe=probe,
    )
    watcher = Recorder()
    train(
        state,
        batches or Blobs(),
        plan,
        PhaseTimer(CPU),
        measure,
        watcher,
        keeper or Keeper(),
        StopFlag(),
    )
    return watcher


def weights(state: TrainState) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in state.model.state_dict().values()])


def test_the_same_run_is_the_same_to_the_last_bit():
    states = [
        fresh(),
        fresh(),
        fresh(),
        fresh(seed=1),
    ]  # the last two: other dropout, other initial weights
    for elsewhere, (state, seed) in enumerate(zip(states, (0, 0, 1, 0), strict=True)):
        torch.manual_seed(elsewhere)
        trained(state, seed=seed)
    first, second, *others = states
    assert torch.equal(weights(first), weights(second))
    assert [
        [a[key] == b[key] for key in SCORES]
        for a, b in zip(first.history, second.history, strict=True)
    ] == [[True] * 4] * 4
    assert not any(torch.equal(weights(first), weights(other)) for other in others)


COURSES = [
    {"course": "cosine", "final_factor": 0},
    {"course": "plateau", "gamma": 0.5, "patience": 0, "threshold": 0},
]


@pytest.mark.parametrize(
    "at", [1, 3, 4, 6, 11, 12]
)  # the first, a middle and the last batch of an epoch, the end
@pytest.mark.parametrize(
    "own", [{**course, "ema": ema} for course in COURSES for ema in (None, 0.8)]
)
def test_a_continued_run_ends_with_the_same_bits(own, at):
    whole, continued = fresh(**own), fresh(**own)
    keeper = Keeper(whole, at)
    trained(whole, keeper=keeper)
    torch.manual_seed(at)
    continued.restore(keeper.saved[at])
    trained(continued)
    assert torch.equal(weights(whole), weights(continued))
    assert [[row[key] for key in SCORES] for row in whole.history] == [
        [row[key] for key in SCORES] for row in continued.history
    ]


def test_an_epoch_depends_on_nothing_but_the_state():
    whole, halved = (fresh(course="cosine", final_factor=0) for _ in range(2))
    seeds = []
    whole.model.register_forward_pre_hook(
        lambda model, _: seeds.append(torch.initial_seed()) if model.training else None
    )
    trained(whole)
    assert len(set(seeds)) == len(seeds) == 12  # every step has a dropout of its own
    for epochs in (2, 4, 4):  # the third finds nothing left to do
        trained(halved, epochs)
        halved.model.eval()
    assert torch.equal(weights(whole), weights(halved))
    assert (halved.epoch, halved.step, len(halved.history)) == (4, 12, 4)


def test_the_record_of_an_epoch():
    state = fresh(lr=0.25, course="step", milestones=[1], gamma=0.5)
    watcher = trained(state, epochs=2)
    order = ["epoch", "step", "lr", *SCORES, "images_per_second", "time/epoch_seconds"]
    assert [list(row) for row in watcher.rows] == [
        [*order, *(f"time/{part}_seconds" for part in PARTS)]
    ] * 2
    assert [(row["epoch"], row["step"], row["lr"]) for row in watcher.rows] == [
        (1, 3, 0.25),
        (2, 6, 0.125),
    ]
    assert watcher.rows == state.history
    assert watcher.seen == [[1, 3, 22], [2, 3, 22]]
    assert scores(state.model).items() <= watcher.rows[-1].items()
    seconds = {key: value for key, value in watcher.rows[-1].items() if key.startswith("time/")}
    whole = seconds.pop("time/epoch_seconds")
    assert 0 < sum(seconds.values()) <= whole
    training = whole - seconds["time/evaluation_seconds"] - seconds["time/checkpoint_seconds"]
    assert watcher.rows[-1]["images_per_second"] == pytest.approx(22 / training)


class Hungry(nn.Module):
    """Asks the real allocator for what no machine has as soon as it gets more than `room` images."""

    def __init__(self, model: nn.Module, room: int):
        super().__init__()
        self.model, self.room = model, room

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        if self.training and len(images) > self.room:
            torch.empty(1 << 60)
        return logits


def hungry(room: int, norm: str) -> TrainState:
    state = fresh(norm=norm)
    state.model = Hungry(state.model, room)
    return state


@pytest.mark.parametrize(("room", "micro_batches"), [(8, 1), (4, 2), (3, 4), (1, 8)])
def test_a_batch_that_does_not_fit_is_split(room, micro_batches):
    state, ample = hungry(room, "none"), hungry(room, "none")
    ample.micro_batches = micro_batches  # from the start, so that nothing has to be tried again
    watcher = trained(state)
    assert (state.micro_batches, bool(watcher.notes)) == (micro_batches, micro_batches > 1)
    assert "micro-batches" in "".join(watcher.notes[:1]) or micro_batches == 1
    trained(ample)
    assert torch.equal(weights(state), weights(ample))
    assert state.capture()["micro_batches"] == micro_batches


@pytest.mark.parametrize(
    ("room", "norm", "told"), [(4, "batch", "what batch norm computes"), (0, "none", "a single")]
)
def test_a_batch_that_cannot_be_split(room, norm, told):
    with pytest.raises(ResourceError, match=told):
        trained(hungry(room, norm))


def test_it_learns():
    rows = trained(fresh(), epochs=12).rows
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 3
    assert rows[-1]["val/accuracy"] == 1


@pytest.mark.parametrize(("epoch", "batch", "lr"), [(0, 0, 0.04), (1, 2, 0.04), (2, 1, 0.02)])
def test_divergence_names_its_place(epoch, batch, lr):
    state = fresh(lr=0.04, course="step", milestones=[2], gamma=0.5)
    with pytest.raises(
        DivergedError,
        match=rf"at epoch {epoch + 1} batch {batch + 1} with lr {lr}; .*lr={lr / 10} or",
    ):
        trained(state, batches=Blobs(bad=(epoch, batch)))
    assert (state.epoch, state.step, len(state.history)) == (epoch, 3 * epoch + batch, epoch)
    assert all(weight.isfinite().all() for weight in state.model.parameters())


@pytest.mark.parametrize(("patience", "epochs"), [(None, 7), (1, 3), (2, 6), (3, 7)])
def test_the_validation_accuracy_lowers_the_rate_and_stops(patience, epochs):
    accuracies = [0.1, 0.5, 0.5, 0.6, 0.4, 0.6, 0.7]
    told = iter([{"val/accuracy": accuracy} for accuracy in accuracies])
    state = fresh(lr=0.5, course="plateau", gamma=0.1, patience=1, threshold=0)
    rows = trained(state, epochs=7, patience=patience, measure=lambda model: next(told)).rows
    assert [row["val/accuracy"] for row in rows] == accuracies[:epochs]
    assert [row["lr"] for row in rows] == pytest.approx(
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.05][:epochs]
    )


def test_averaged_weights():
    after, measured, state, plain = [], [], fresh(ema=0.75), fresh()
    state.optimizer.register_step_post_hook(
        lambda *_: after.append([weight.detach().clone() for weight in state.model.parameters()])
    )
    trained(state, epochs=2, measure=lambda model: measured.append(model) or {})
    trained(plain, epochs=2)
    assert measured == [state.ema.module] * 2
    by_hand = after[0]
    for step in after[1:]:
        by_hand = [0.75 * old + 0.25 * new for old, new in zip(by_hand, step, strict=True)]
    for ours, expected in zip(state.eval_model().parameters(), by_hand, strict=True):
        torch.testing.assert_close(ours.detach(), expected)
    assert torch.equal(weights(state), weights(plain))  # averaging changes nothing in the training


LAYERS = vgg_layers([Block(1, 8)], "batch", (16,), 1, in_channels=1, size=4, classes=4)


@pytest.mark.parametrize("at", [1, 3, 4, 11])  # in the middle of an epoch, and at its beginning
def test_a_probe_changes_no_bit(at, monkeypatch):
    monkeypatch.setattr("vggexp.training.dead_layers.LOSS_MARGIN_NATS", 100)  # whatever the loss
    monkeypatch.setattr("vggexp.training.dead_layers.MIN_SIGNAL_RATIO", 100)
    alone, probed = fresh(ema=0.8), fresh(ema=0.8)
    trained(alone)
    watcher = trained(probed, probe=DeadLayerCheck(at, LAYERS, ["a=1"], stop=False))
    assert len(watcher.notes) == 1 and f"after {at} steps" in watcher.notes[0]
    assert torch.equal(weights(alone), weights(probed))
    assert [[row[key] for key in SCORES] for row in alone.history] == [
        [row[key] for key in SCORES] for row in probed.history
    ]


def test_a_net_that_learns_is_told_nothing():
    assert trained(fresh(), epochs=12, probe=DeadLayerCheck(30, LAYERS, [], stop=True)).notes == []


class Slow:
    """Sleeps in one part of the loop: a source of batches, a keeper and a watcher in one."""

    count, batches_per_epoch, seconds = 22, 3, 0.02

    def __init__(self, part: str):
        self.part = part

    def sleep(self, part: str) -> None:
        time.sleep(self.seconds * (part == self.part))

    def train(self, epoch: int, start: int = 0):
        for batch in Blobs().train(epoch, start):
            self.sleep("data")
            yield batch

    def scores(self, model):
        self.sleep("evaluation")
        return scores(model)

    def due(self) -> bool:
        return True

    def save(self, state: TrainState) -> None:
        self.sleep("checkpoint")

    def progress(self, *_):
        return contextlib.nullcontext(self)

    def update(self, images: int) -> None:
        self.sleep("logging")

    def epoch(self, row) -> None: ...


@pytest.mark.parametrize(
    "part", ["data", "compute", "optimizer", "evaluation", "checkpoint", "logging"]
)
def test_a_sleep_is_booked_where_it_was(part):
    state, slow = fresh(), Slow(part)
    state.model.register_full_backward_pre_hook(lambda *_: slow.sleep("compute"))
    state.optimizer.register_step_pre_hook(lambda *_: slow.sleep("optimizer"))
    plan = TrainSettings(CPU, 0, 2, 8, 0.0, None, None, 0.0, contextlib.nullcontext)
    train(state, slow, plan, PhaseTimer(CPU), slow.scores, slow, slow, StopFlag())
    times = [row[f"time/{part}_seconds"] for row in state.history]
    assert all(seconds >= slow.seconds * (1 if part == "evaluation" else 3) for seconds in times)


@pytest.mark.parametrize(
    "part", ["data", "compute", "optimizer", "evaluation", "checkpoint", "logging"]
)
def test_a_sleep_is_booked_whole_and_nowhere_else(part, monkeypatch):
    """5 ms in each place, by a clock that goes on only there: nothing of the machine is in the figures."""
    ticks: list[float] = []
    monkeypatch.setattr("vggexp.training.timer.time.perf_counter", lambda: sum(ticks))
    monkeypatch.setattr(time, "sleep", lambda seconds: ticks.append(seconds))
    monkeypatch.setattr(Slow, "seconds", 0.005)
    state, slow, clock = fresh(), Slow(part), PhaseTimer(CPU)
    state.model.register_full_backward_pre_hook(lambda *_: slow.sleep("compute"))
    state.optimizer.register_step_pre_hook(lambda *_: slow.sleep("optimizer"))
    plan = TrainSettings(CPU, 0, 2, 8, 0.0, None, None, 0.0, contextlib.nullcontext)
    train(state, slow, plan, clock, slow.scores, slow, slow, StopFlag())
    rows = [*state.history, clock.read()]  # what follows the last epoch is in no row
    booked = {other: sum(row[f"time/{other}_seconds"] for row in rows) for other in PARTS}
    assert booked == pytest.approx({other: sum(ticks) * (other == part) for other in PARTS})
    assert sum(ticks) == pytest.approx(0.005 * {"evaluation": 2, "checkpoint": 8}.get(part, 6))
    assert sum(row["time/epoch_seconds"] for row in rows) == pytest.approx(sum(ticks))
