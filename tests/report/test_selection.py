"""Checks `--where`."""

import pytest

from tests.report.conftest import make_record
from vggexp.errors import ConfigError, DataError
from vggexp.report.selection import select_runs

EPOCH = {"epoch": 2, "val/accuracy": 0.7, "train/loss": 0.4}


def make_runs():
    return [
        make_record("good", val_accuracy=0.95, test_accuracy=0.9),
        make_record("large", "arch=vgg16", val_accuracy=0.97, test_accuracy=0.96),
        make_record("stopped", state="paused", rows=[EPOCH], epoch=None),
        make_record("new", "scheduler=step", state="not started", epoch=None),
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("val/accuracy > 0.9", ["good", "large"]),
        ("val/accuracy > 0.9 and parameters < 45e6", ["good"]),
        ("not val/accuracy > 0.9", ["stopped"]),
        ("val/accuracy == null", ["new"]),
        ("val/accuracy == null or val/accuracy > 0.96", ["large", "new"]),
        ("val/accuracy > 0.96 or val/accuracy == null", ["large", "new"]),
        ("-epoch < -3", ["good", "large"]),
        ("not 1 < 0 < val/accuracy * 2", ["good", "large", "stopped", "new"]),
        ("val/accuracy * 2 > 1.9 or state == 'not started'", ["large", "new"]),
        ("not (val/accuracy > 0.96 and state == 'not started')", ["good", "large", "stopped"]),
        ("test/accuracy - val/accuracy > -0.02", ["large"]),
        ("train/loss < 1", ["stopped"]),
        ("state == 'paused' or network == 'vgg16'", ["large", "stopped"]),
        ("scheduler.gamma > 0", ["new"]),
        ("macs > 1e9 and weight_layers in [11, 13]", ["good", "stopped", "new"]),
        ("run != 'good' and data.resize == 96 and epoch == 5", ["large"]),
    ],
)
def test_an_expression_selects_runs(where, expected):
    assert [run.name for run in select_runs(make_runs(), where)] == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "val/acuracy > 0.9",
            "val/acuracy: unknown; nearest val/accuracy, test/accuracy; metrics,",
        ),
        ("seed == 0 or optimizer.lrr == 1", "optimizer.lrr: unknown; nearest optimizer.lr"),
        ("network == vgg16", "vgg16: unknown; metrics, state, network, run, parameters and keys"),
        ("val/accuracy = 1", "not an expression, as 'val/accuracy > 0.9 and parameters < 30e6'"),
        ("val/accuracy > null", "'>' not supported between instances of 'float' and 'NoneType'"),
        ("parameters", ", not true or false; compare it with something"),
        ("optimizer.lr > 'x'", "'>' not supported between instances of 'float' and 'str'"),
        ("seed.__class__ == 1", "seed.__class__: unknown; "),
        ("len([1]) == 1", "len: unknown; "),
    ],
)
def test_a_wrong_expression_is_refused(where, message):
    with pytest.raises(ConfigError) as raised:
        select_runs(make_runs(), where)
    assert str(raised.value).startswith(f"--where {where}: ")
    assert message in str(raised.value)


def test_an_expression_that_no_run_satisfies_is_refused():
    with pytest.raises(DataError, match="--where val/accuracy > 1: holds for none of 4 runs"):
        select_runs(make_runs(), "val/accuracy > 1")
