"""Tests the expressions of `sweep.where`; tests/config/test_bad_input.py has their errors."""

import pytest

from vggexp.config.compose import parse_command
from vggexp.cost_plan import plan_costs
from vggexp.errors import ConfigError
from vggexp.sweep.expand import compose_run
from vggexp.sweep.filter import filter_values, matches, names, parse_filter


@pytest.fixture(scope="module")
def config():
    return compose_run(parse_command([]))


def test_an_expression_has_the_numbers_of_plan():
    config = compose_run(parse_command(["arch=vgg16"]))
    costs = plan_costs(config)
    values = filter_values(config)
    assert values["parameters"] == costs.parameters
    assert values["macs"] == costs.macs
    assert values["weight_layers"] == 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 < 2 < 3", True),
        ("1 < 2 > 3", False),
        ("optimizer.lr * 2 == 0.02", True),
        ("-1 < +1", True),
        ("train.ema == null", True),
        ("device.compile == false", True),
        ("arch.norm in ['none', 'batch']", True),
        ("7 // 2 + 7 % 2 - 1 == 3 and not 1 / 2 > 1", True),
        ("seed == 0 or nonsense == 1", True),
        ("arch.norm not in ('none', 'batch')", False),
    ],
)
def test_an_expression_is_evaluated(text, expected, config):
    assert matches(text, config) is expected


def test_a_quotient_of_a_part_and_a_metric_is_one_name():
    text = "best/val/accuracy > val/accuracy / 2 and parameters/macs < -optimizer.lr"
    found = set(names(parse_filter(text, "", "")))
    assert found == {"best/val/accuracy", "val/accuracy", "parameters", "macs", "optimizer.lr"}


def test_a_job_has_no_metric(config):
    with pytest.raises(ConfigError, match="val/accuracy: unknown; "):
        matches("val/accuracy > 0.9", config)
