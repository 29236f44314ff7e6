"""Tests the fields of result.json."""

import torch

from tests.conftest import TINY
from tests.factories import make_state
from vggexp.config.compose import parse_command
from vggexp.runner import result
from vggexp.sweep.expand import compose_run
from vggexp.training.metrics import score_logits
from vggexp.training.timer import PARTS


def test_the_times_of_a_run_are_those_of_its_epochs_and_of_its_end():
    keys = ["time/epoch_seconds", *(f"time/{part}_seconds" for part in PARTS)]
    times = result.total_times([dict.fromkeys(keys, 2.0)] * 3, dict.fromkeys(keys, 1.0))
    parts = dict.fromkeys(keys[1:], 7.0)
    assert times == {"seconds": 7.0, **parts, "time/test_seconds": 1.0}


def test_the_tested_epoch_is_the_last_or_the_first_of_the_best():
    history = [{"epoch": 1 + i, "val/accuracy": a} for i, a in enumerate((0.1, 0.3, 0.3, 0.2))]
    assert result.tested_epoch(history, "last")["epoch"] == 4
    assert result.tested_epoch(history, "best")["epoch"] == 2


def test_the_tested_weights_and_the_end_of_a_run_have_a_step_each():
    state = make_state()
    for epoch, accuracy in enumerate((0.5, 0.25), 1):
        row = {"epoch": epoch, "step": 3 * epoch, "val/accuracy": accuracy}
        state.history.append(row | {"images_per_second": 10.0})
    state.epoch = 2
    state.step = 6
    config = compose_run(parse_command([*TINY, "train.test_weights=best"]))
    labels = torch.tensor([0, 1])
    scores = score_logits(torch.eye(10)[labels], labels, "test")
    fields = result.result_fields(config, state, state.history[0], scores, state.model.state_dict())
    assert (fields["epoch"], fields["step"]) == (2, 6)
    assert fields["weights_step"] == 3
    assert fields["val/accuracy"] == fields["best/val/accuracy"] == 0.5
    assert fields["test/accuracy"] == 1
