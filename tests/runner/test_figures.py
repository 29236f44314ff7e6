"""Tests the columns of TensorBoard's HParams table."""

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.runner.figures import hyperparameters
from vggexp.sweep.expand import compose_run


def columns(*overrides):
    return hyperparameters(compose_run(parse_command([*TINY, "device=cpu", *overrides])))


@pytest.mark.parametrize(
    "override",
    [
        "train.label_smoothing=0.1",
        "+optimizer.dampening=0.1",
        "arch.dropout=0.1",
        "arch.blocks=[[1,8],[1,8]]",
        "seed=3",
    ],
)
def test_runs_that_differ_have_a_column_that_differs(override):
    key = override.lstrip("+").partition("=")[0]
    assert columns(override)[key] != columns().get(key)


def test_a_column_has_a_type_that_tensorboard_knows():
    assert {type(value) for value in columns().values()} <= {bool, int, float, str}
    assert columns()["arch.hidden"] == "[16]"


def test_keys_that_change_no_result_have_no_column():
    assert columns("data.workers=7", "run.name=x", "resume=force") == columns()
