"""Anything in the place of a field of a checkpoint is refused in one line, or trains on."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from tests.factories import make_checkpoint, make_model, make_schedule, make_state, run_training
from vggexp.config.torch_optim import UNSUPPORTED_OPTIMIZERS, optimizers
from vggexp.errors import CheckpointError
from vggexp.training import checkpoint, checkpoint_schema
from vggexp.training.loop import Position, TrainState
from vggexp.training.optimizers import build_optimizer

EPOCHS = 4
NUMBERS = [0, 1, -1, 4, 10**9, 10**5000, 0.5, -0.5, math.nan, math.inf, -math.inf]
TEXTS = ["", "7", "\x1b[2J\n", "\udc80"]
DEEP: list = []
DEEP.append(DEEP)
HUGE = torch.zeros(1).expand(10**12)
TENSORS = [
    torch.zeros(()),
    torch.full((8, 1, 3, 3), torch.nan),
    torch.full((2,), torch.inf, dtype=torch.float64),
    torch.zeros(2, dtype=torch.int32),
    torch.zeros(2, 2).to_sparse(),
    torch.empty(2, device="meta"),
    HUGE,
]
WRONG = [None, True, *NUMBERS, *TEXTS, [], ["x"], (1,), DEEP, {}, {"x": None}, {1: 1}, *TENSORS]
MISSING = object()
# Fields with several values that a run may write. Training goes on from each of them.
FREE = {"identity", "torch", "threads", "device_name", "cpu_capability", "processes", "data"}
FREE |= {"classes", "mean", "std", "format", "epoch", "history", "micro_batches", "spent"}
FREE |= {"optimizer", "schedule", "scaler", "ema", "sums"}


def fresh_state() -> TrainState:
    adam = partial(torch.optim.Adam, fused=True, amsgrad=True)
    schedule = make_schedule("plateau", gamma=0.5, patience=1, threshold=0.0)
    return make_state(make_model(norm="batch"), adam, schedule, ema_decay=0.9)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A checkpoint at the second batch of the second epoch."""
    state = fresh_state()
    run_training(state, until=Position(1, 2), log_steps=1)
    return make_checkpoint(state)


def paths(value: Any) -> Iterator[tuple]:
    """Yields the path of every value in nested dictionaries and lists.

    Of the tensors of a network, and of the parameters of an optimizer, only the first is yielded.
    """
    items: list = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    if items and type(items[0][1]) in (torch.Tensor, dict) and len(items) > 4:
        items = items[:1]
    for key, item in items:
        yield (key,)
        yield from ((key, *path) for path in paths(item))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """Returns a copy with another value at a path; MISSING takes the value away."""
    if not path:
        return new
    result = copy.copy(value)
    key, *rest = path
    if not rest and new is MISSING:
        del result[key]
    else:
        result[key] = replaced(value[key], tuple(rest), new)
    return result


def resume(content: Any, state: TrainState) -> None:
    """Continues a checkpoint to the end of its epoch. Raises ValueError if it is refused."""
    checkpoint_schema.check_content(content)
    checkpoint_schema.check_state(content, state, EPOCHS)
    weights = {name: content[name] for name in ("net", "ema")}  # are copied
    others = {name: value for name, value in content.items() if name not in weights}
    state.restore(copy.deepcopy(others) | weights)
    run_training(state, until=Position(2, 0), log_steps=1)


@pytest.mark.process
def test_every_field_is_refused_or_continues(content):
    accepted = set()
    state = fresh_state()
    for path in paths(content):
        for value in [*WRONG, MISSING]:
            try:
                resume(replaced(content, path, value), state)
            except ValueError as error:
                assert len(str(error)) < 200, path
            else:
                assert state.position == (2, 0), path
                accepted.add(path[0])
    assert accepted == FREE


def test_a_refusal_has_the_file_the_field_and_what_is_expected(content, tmp_path):
    path = tmp_path / "00000005.pt"
    checkpoint.save(path, content | {"batch": -1})
    with pytest.raises(CheckpointError) as error:
        checkpoint_schema.load(path)
    reason = f"batch is -1, expected a whole number of 0..{checkpoint_schema.MAX_STEPS}"
    assert str(error.value) == f"{path}: not what a run writes: {reason}"


REFUSALS = {
    "net": (MISSING, "net is missing"),
    "epoch": (10**9, "epoch is 1000000000, expected a whole number of 0..100000"),
    "history": ([], "epoch is 1, expected 0"),
    "step": (4, "step is 4, expected 5"),
    "optimizer": ("x", "optimizer is 'x', expected a dictionary"),
    "sums": (
        {"sums": torch.ones(2), "count": 16, "last_totals": [1.0, 1.0, 17.0]},
        "sums.last_totals.2 is 17.0, expected a finite number of 0..16",
    ),
    "format": (2, "format 2, this vggexp reads up to 1; update vggexp"),
}


def test_weights_that_overflow_in_validation_may_recover(content):
    """A run whose validation or test loss was NaN or infinite after an epoch trains on."""
    for loss in (math.nan, math.inf):
        row = content["history"][0] | {"val/loss": loss, "test/loss": loss}
        checkpoint_schema.check_content(content | {"history": [row]})


@pytest.mark.parametrize("loss", [-math.inf, -0.5, "1"])
@pytest.mark.parametrize("key", ["val/loss", "test/loss", "train/loss"])
def test_a_loss_that_no_cross_entropy_has(key, loss, content):
    row = content["history"][0] | {key: loss}
    with pytest.raises(
        ValueError, match=rf"history\.0\.{key} is .*, expected a finite number of 0"
    ):
        checkpoint_schema.check_content(content | {"history": [row]})


@pytest.mark.parametrize("key", ["numerics", "processes"])
def test_a_fact_that_the_first_version_did_not_write(key, content):
    checkpoint_schema.check_content(content | {key: 1})
    with pytest.raises(ValueError, match=f"^{key} is 0, expected a whole number of 1"):
        checkpoint_schema.check_content(content | {key: 0})


@pytest.mark.parametrize("content", [None, 1, [], torch.zeros(2)])
def test_a_content_that_is_no_dictionary_is_refused(content):
    with pytest.raises(ValueError, match=r"^the content is .*, expected a dictionary$"):
        checkpoint_schema.check_content(content)


@pytest.mark.parametrize("field", REFUSALS)
def test_refusals(content, field):
    value, reason = REFUSALS[field]
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        checkpoint_schema.check_content(replaced(content, (field,), value))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.full((8, 1, 3, 3), torch.nan), "holds NaN or infinity"),
        (torch.full((8, 1, 3, 3), -torch.inf), "holds NaN or infinity"),
        (torch.zeros(8, 1, 3, 3).double(), "is float64 [8, 1, 3, 3], expected float32"),
        (torch.zeros(8, 1, 3), "is float32 [8, 1, 3], expected float32 [8, 1, 3, 3]"),
        (torch.zeros(1).expand(8, 1, 3, 3), "has fewer values than its shape says"),
    ],
)
def test_weights_that_do_not_fit_are_named(content, tensor, reason):
    expected = fresh_state().model.state_dict()
    weights = content["net"] | {"0.0.0.weight": tensor}
    with pytest.raises(ValueError, match=re.escape(f"net.0.0.0.weight {reason}")):
        checkpoint_schema.check_weights(weights, expected, "net")


def test_the_optimizer_before_resume_force_may_have_more_tensors(content):
    state = make_state(make_model(norm="batch"), schedule=fresh_state().schedule, ema_decay=0.9)
    run_training(state, until=Position(0, 1))
    plain = make_checkpoint(state)["optimizer"]
    momentum = {"momentum_buffer": torch.zeros(8, 1, 3, 3), "exp_avg": torch.zeros(1)}
    for index, values, reason in ((0, momentum, None), (0, {}, "is missing"), (99, {}, "no param")):
        saved = content | {"optimizer": plain | {"state": plain["state"] | {index: values}}}
        with nullcontext() if reason is None else pytest.raises(ValueError, match=reason):
            checkpoint_schema.check_state(saved, state, None)


def test_a_step_updates_all_parameters(content):
    """Without its tensors, a parameter would go on with other bits."""
    optimizer = content["optimizer"]
    for states, reason in (
        ({}, None),
        ({0: optimizer["state"][0]}, "optimizer.state.1 is missing"),
    ):
        saved = content | {"optimizer": optimizer | {"state": states}}
        with nullcontext() if reason is None else pytest.raises(ValueError, match=reason):
            checkpoint_schema.check_state(saved, fresh_state(), None)


def test_every_optimizer_of_torch_continues():
    for name in optimizers().keys() - UNSUPPORTED_OPTIMIZERS.keys():
        state = make_state()
        state.optimizer = build_optimizer(name, state.model, 0.01, 0.0, {})
        run_training(state, until=Position(1, 2))
        resumed = make_state()
        resumed.optimizer = build_optimizer(name, resumed.model, 0.01, 0.0, {})
        checkpoint_schema.check_state(make_checkpoint(state), resumed, EPOCHS)


def test_half_precision_continues_a_run_without_a_scaler(content):
    state = fresh_state()
    state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert content["scaler"] == {}
    checkpoint_schema.check_state(content, state, EPOCHS)
    state.restore(copy.deepcopy(content))
    assert state.scaler.get_scale() == 2**16
