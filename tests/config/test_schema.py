"""Ranges: which numbers they hold, and the ends of those that a key must not reach."""

import pytest

from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.parse import parse_config
from vggexp.config.schema import Range
from vggexp.sweep.expand import compose_run


@pytest.mark.parametrize("open_low", [False, True])
@pytest.mark.parametrize("open_high", [False, True])
def test_a_range_holds_its_ends_unless_they_are_open(open_low, open_high):
    limits = Range(1, 4, open_low, open_high)
    assert (1 in limits) == (not open_low)
    assert (4 in limits) == (not open_high)
    assert 2.5 in limits
    assert 0.999 not in limits
    assert 4.001 not in limits


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("arch.dropout", 0, 1),
        ("augment.flip", 1, 1.01),
        ("data.val_fraction", 0.99, 1),
        ("optimizer.lr", 100, 0),
        ("train.label_smoothing", 0, 1),
        ("train.patience", 1, 0),
        ("train.ema", 0.01, 0),
        ("train.ema", 0.99, 1),
    ],
)
def test_the_end_of_the_range_of_a_key(key, allowed, refused):
    values = to_plain(compose_run(parse_command(["device=cpu"])))
    section, name = key.split(".")
    values[section][name] = allowed
    assert parse_config(values)[1] == []
    values[section][name] = refused
    assert parse_config(values)[1].paths == {key}
