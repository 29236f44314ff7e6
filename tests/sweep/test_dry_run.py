"""`sweep.dry_run=true`: nothing starts, what is done is told, and time is expected by runs of about that size only."""

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


def own(config, **other):
    return RunCost(network_name(config), "cpu", macs(layers(config)), 3.0)._replace(**other)


@pytest.mark.parametrize(
    ("others", "rate"),
    [
        ([], None),
        ([{}], 3),
        ([{}, {"seconds": 5.0}, {"seconds": 4.0}], 4),  # the median
        ([{"network": "vgg13", "seconds": 9.0}, {}], 3),  # the same network's come first
        ([{"network": "vgg13", "seconds": 9.0}], 9),
        ([{"device": "cuda"}], None),
    ],
)
def test_time_is_that_of_runs_on_this_device(config, others, rate):
    costs = [own(config, **other) for other in others]
    expected = None if rate is None else rate * training_macs(config) / 1e9
    assert expected_seconds(config, costs) == expected


@pytest.mark.parametrize(
    ("factor", "known"),
    [
        (1 / SIMILAR_MACS_FACTOR, True),
        (SIMILAR_MACS_FACTOR, True),
        (0.9 / SIMILAR_MACS_FACTOR, False),
        (10, False),
    ],
)
def test_a_network_of_another_size_tells_no_time(config, factor, known):
    cost = own(config, macs=own(config).macs * factor)
    assert (expected_seconds(config, [cost]) is not None) == known


def test_a_dry_run_tells_and_starts_nothing(command, tmp_path):
    assert command(*TINY, "seed=1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, _ = command("-m", *TINY, "seed=1,2", "arch.width=0.05,1", "sweep.dry_run=true")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[2:6]]
    assert code == 0 and len(rows) == 4
    head = [cell.strip() for cell in out.splitlines()[0].split("|")[1:-1]]
    named = [dict(zip(head, row, strict=True)) for row in rows]
    told = {(row["seed"], row["arch.width"]): (row["state"], row["expected"]) for row in named}
    assert told["1", "0.05"] == ("finished", "-")
    assert told["2", "0.05"][0] == "not started" and told["2", "0.05"][1].endswith(" s")
    assert told["1", "1"] == told["2", "1"] == ("not started", "-")  # 300 times the work an image
    assert "4 jobs: 1 finished, 3 to run; no finished run of such a size" in out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (
        "2 jobs: 1 finished, 1 to run, about"
        in command("-m", *TINY, "seed=1,2", "sweep.dry_run=true")[1]
    )
