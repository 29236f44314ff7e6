"""Tests `sweep.dry_run=true`: nothing starts, and the last line has jobs, epochs and time."""

from pathlib import Path

import pytest

from tests.conftest import TINY, write_epochs
from vggexp.config.compose import parse_command
from vggexp.runs.directory import read_result
from vggexp.runs.forecast import UNKNOWN, Forecast
from vggexp.runs.records import run_dir, run_state
from vggexp.sweep.dry_run import (
    JobOutlook,
    dry_run_lines,
    job_outlooks,
    outlook_line,
    rung_lines,
    search_line,
)
from vggexp.sweep.expand import compose_outline, compose_run, expand_sweep

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
        (
            [("paused", KNOWN), ("interrupted", KNOWN)],
            1,
            f"2 jobs: 0 finished, 1 paused, 1 to run for 2 epochs, about 30.0 s {FROM}",
        ),
    ],
)
def test_the_line_of_a_sweep_has_its_jobs_epochs_and_time(config, jobs, at_a_time, line):
    outlooks = []
    for state, time in jobs:
        is_done = state in ("finished", "paused")
        outlooks.append(JobOutlook(config, Path("a"), state, time, is_done))
    assert outlook_line(outlooks, at_a_time) == line


def test_the_line_of_a_sweep_leaves_out_the_epochs_that_are_trained(config):
    outlook = JobOutlook(config, Path("a"), "interrupted", KNOWN, is_done=False, trained=1)
    line = f"1 job: 0 finished, 1 to run for 1 epoch, about 15.0 s {FROM}"
    assert outlook_line([outlook], 1) == line


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


def test_jobs_that_run_until_has_ended_are_done(tmp_path):
    """Of four runs one is paused, one has trained on, one was killed before its pause.

    The third has its epoch and lacks only its end.
    """
    configs = []
    for seed in range(4):
        overrides = ["device=cpu", *TINY, "run.until=1", f"run.root={tmp_path}", f"seed={seed}"]
        configs.append(compose_run(parse_command(overrides)))
    write_epochs(configs[0], [0.5])
    write_epochs(configs[1], [0.5, 0.6], "interrupted")
    write_epochs(configs[2], [0.5], "interrupted")
    line = outlook_line(job_outlooks(configs, 1), 1)
    assert line.startswith("4 jobs: 0 finished, 2 paused, 2 to run for 1 epoch, 1 job at a time")


@pytest.mark.parametrize(
    ("launcher", "at_a_time"),
    [("hydra.launcher.jobs=3", 3), ("hydra/launcher=submitit_local", 4)],
)
def test_a_search_counts_the_epochs_of_runs_that_pause_and_the_jobs_at_a_time(launcher, at_a_time):
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=9", "optimizer.lr=interval(0.01,1)"]
    search += ["hydra.sweeper.parallel=4", launcher]
    command = parse_command(["-m", *TINY, "device=cpu", "run.until=1", *search])
    plan = expand_sweep(command, compose_outline(command))
    line = f"9 trials: 1 ended, 8 to run for 8 epochs, {at_a_time} trials at a time; "
    assert search_line(plan, 1).startswith(line)


HALVING = ["-m", *TINY, "train.epochs=4", "sweep.halving=2", "optimizer.lr=0.01,0.02,0.03,0.05"]


def make_halving(*overrides):
    """Returns the jobs of a halving sweep, and its section `sweep`."""
    command = parse_command([*HALVING, *overrides])
    grid = expand_sweep(command, compose_outline(command))
    return grid.configs(), grid.sweep


def outlooks_of(jobs, time):
    outlooks = []
    for config in jobs.values():
        folder = run_dir(config)
        state = run_state(folder, read_result(folder))
        outlooks.append(JobOutlook(config, folder, state, time, is_done=state == "finished"))
    return outlooks


def test_rungs_have_their_runs_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_halving("sweep.repeats=2")
    lines = rung_lines(jobs, outlooks_of(jobs, Forecast(240.0, KNOWN.sources)), 2, sweep)
    assert lines == [
        "rung 1   8 runs to epoch 1   about 4.0 min   4 go on   (val/accuracy)",
        "rung 2   4 runs to epoch 2   about 2.0 min   2 go on",
        "rung 3   2 runs to epoch 4   about 2.0 min",
        "16 of 32 epochs: 0 runs finished, 0 paused, 16 epochs to train, 2 jobs at a time, "
        f"about 8.0 min {FROM}; the full grid about 16.0 min",
    ]


def test_rungs_count_what_is_done(tmp_path, monkeypatch):
    """Of four runs three are paused at epoch 1, and the fourth has failed."""
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_halving()
    *paused, failed = jobs.values()
    for config in paused:
        write_epochs(config, [0.5])
    write_epochs(failed, [], "failed")
    lines = rung_lines(jobs, outlooks_of(jobs, UNKNOWN), 1, sweep)
    assert lines[-1] == (
        "8 of 16 epochs: 0 runs finished, 3 paused, "
        "1 failed before (sweep.retry_failed=true tries again), 4 epochs to train, "
        "1 job at a time; their time is unknown, no run of this kind has finished on this host"
    )


def test_a_run_that_is_finished_may_save_epochs_of_a_later_rung(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_halving()
    first, *_ = jobs.values()
    write_epochs(first, [0.5] * 4, "finished")
    lines = rung_lines(jobs, outlooks_of(jobs, UNKNOWN), 1, sweep)
    assert "8 of 16 epochs: 1 run finished, 0 paused, at most 7 epochs to train" in lines[-1]


def test_a_sweep_that_has_ended_has_nothing_to_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_halving()
    for config in jobs.values():
        write_epochs(config, [], "failed")
    lines = rung_lines(jobs, outlooks_of(jobs, KNOWN), 1, sweep)
    assert lines[-1].endswith(", 0 epochs to train")


def test_the_dry_run_expects_the_time_of_the_next_rung(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_halving()
    first, *others = jobs.values()
    write_epochs(first, [0.5])
    assert len(others) == 3
    lines = dry_run_lines(list(jobs.items()), outlooks_of(jobs, Forecast(240.0)), 1, sweep)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:6]]
    column = table[0].index("expected in rung 1")
    assert [row[column] for row in table[2:]] == ["-", "60.0 s", "60.0 s", "60.0 s"]
