"""Tests `sweep.dry_run=true`: nothing starts, and only similar runs predict the time."""

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers, training_macs
from vggexp.config.run_id import network_name
from vggexp.models.shapes import macs
from vggexp.sweep.dry_run import SIMILAR_MACS_FACTOR, RunCost, expected_seconds
from vggexp.sweep.expand import compose_run


@pytest.fixture(scope="module")
def config():
    return compose_run(parse_command(["device=cpu", *TINY]))


def make_cost(config, **fields):
    """Returns the cost of a run of this configuration, with other fields."""
    cost = RunCost(network_name(config), "cpu", macs(layers(config)), seconds=3.0)
    return cost._replace(**fields)


@pytest.mark.parametrize(
    ("runs", "rate"),
    [
        ([], None),
        ([{}], 3),
        ([{}, {"seconds": 5.0}, {"seconds": 4.0}], 4),  # the median
        ([{"network": "vgg13", "seconds": 9.0}, {}], 3),  # the same network comes first
        ([{"network": "vgg13", "seconds": 9.0}], 9),
        ([{"device": "cuda"}], None),
    ],
)
def test_the_time_is_that_of_runs_on_this_device(config, runs, rate):
    costs = [make_cost(config, **fields) for fields in runs]
    expected = None if rate is None else rate * training_macs(config) / 1e9
    assert expected_seconds(config, costs) == expected


@pytest.mark.parametrize(
    ("factor", "is_similar"),
    [
        (1 / SIMILAR_MACS_FACTOR, True),
        (SIMILAR_MACS_FACTOR, True),
        (0.9 / SIMILAR_MACS_FACTOR, False),
        (10, False),
    ],
)
def test_a_network_of_another_size_predicts_no_time(config, factor, is_similar):
    cost = make_cost(config, macs=macs(layers(config)) * factor)
    assert (expected_seconds(config, [cost]) is not None) == is_similar


@pytest.mark.process
def test_a_dry_run_prints_and_starts_nothing(command, tmp_path):
    assert command(*TINY, "seed=1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, _ = command("-m", *TINY, "seed=1,2", "arch.width=0.05,1", "sweep.dry_run=true")
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:6]]
    assert code == 0
    cells = {}
    for values in table[2:]:
        row = dict(zip(table[0], values, strict=True))
        cells[row["seed"], row["arch.width"]] = (row["state"], row["expected"])
    assert len(cells) == 4
    assert cells["1", "0.05"] == ("finished", "-")
    state, expected = cells["2", "0.05"]
    assert state == "not started"
    assert expected.endswith(" s")
    assert cells["1", "1"] == ("not started", "-")  # 300 times the work for an image
    assert cells["2", "1"] == ("not started", "-")
    assert "4 jobs: 1 finished, 3 to run; their time is unknown" in out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    _, out, _ = command("-m", *TINY, "seed=1,2", "sweep.dry_run=true")
    assert "2 jobs: 1 finished, 1 to run, about" in out
