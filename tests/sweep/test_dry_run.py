"""Tests `sweep.dry_run=true`: nothing starts, and the last line has jobs, epochs and time."""

from pathlib import Path

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.runs.forecast import UNKNOWN, Forecast
from vggexp.sweep.dry_run import JobOutlook, outlook_line
from vggexp.sweep.expand import compose_run

KNOWN = Forecast(30.0, frozenset([Path("a"), Path("b")]))
FROM = "(from 2 finished runs of this kind on this host)"


@pytest.fixture(scope="module")
def config():
    return compose_run(parse_command(["device=cpu", *TINY]))


@pytest.mark.parametrize(
    ("jobs", "at_a_time", "line"),
    [
        ([("finished", KNOWN)], 1, "1 job: 1 finished, 0 to run"),
        (
            [("not started", KNOWN)] * 3,
            2,
            f"3 jobs: 0 finished, 3 to run for 6 epochs, 2 jobs at a time, about 60.0 s {FROM}",
        ),
        (
            [("finished", KNOWN), ("interrupted", KNOWN)],
            2,
            f"2 jobs: 1 finished, 1 to run for 2 epochs, about 30.0 s {FROM}",
        ),
        (
            [("not started", UNKNOWN)],
            1,
            "1 job: 0 finished, 1 to run for 2 epochs; their time is unknown, "
            "no run of this kind has finished on this host",
        ),
        (
            [("not started", KNOWN), ("not started", UNKNOWN)],
            1,
            "2 jobs: 0 finished, 2 to run for 4 epochs, 1 job at a time, "
            f"about 30.0 s {FROM}, and the unknown time of 2 epochs",
        ),
        (
            [("failed", KNOWN)],
            1,
            "1 job: 0 finished, 1 failed before (sweep.retry_failed=true tries again), 0 to run",
        ),
    ],
)
def test_the_line_of_a_sweep_has_its_jobs_epochs_and_time(config, jobs, at_a_time, line):
    outlooks = [JobOutlook(config, Path("a"), state, time) for state, time in jobs]
    assert outlook_line(outlooks, at_a_time) == line


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
        cells[row["seed"], row["arch.width"]] = row
    assert len(cells) == 4
    assert cells["1", "0.05"]["state"] == "finished"
    assert cells["1", "0.05"]["expected"] == "-"
    assert cells["1", "0.05"]["MACs an image"] == "406.7 kMAC"
    assert cells["2", "0.05"]["state"] == "not started"
    assert cells["2", "0.05"]["expected"].endswith(" s")
    assert cells["1", "1"]["expected"] == "-"  # 300 times the work for an image
    assert cells["2", "1"]["expected"] == "-"
    assert "4 jobs: 1 finished, 3 to run for 6 epochs, 1 job at a time, about " in lines[-1]
    assert lines[-1].endswith(", and the unknown time of 4 epochs")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
