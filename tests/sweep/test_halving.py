"""Tests sweep.halving: rungs, decisions, and that its runs have the bits of the full grid."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import TINY, result, write_epochs
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_name
from vggexp.errors import ConfigError
from vggexp.runs import directory, records
from vggexp.sweep.expand import check_command, compose_outline, expand_sweep
from vggexp.sweep.halving import (
    choose_survivors,
    has_work,
    plan_rungs,
    run_rungs,
    undecided_line,
)
from vggexp.training import checkpoint
from vggexp.verify.replay import bitwise_equal, named_values

FOUR = ["-m", *TINY, "train.epochs=4", "arch.norm=batch", "train.ema=0.9"]
SCHEDULES = "scheduler=constant,cosine,onecycle,plateau"
LRS = "optimizer.lr=0.01,0.02,0.03,0.05"


@pytest.mark.parametrize(
    ("epochs", "factor", "settings", "start", "expected"),
    [
        (27, 3, 9, None, [(3, 9), (9, 3), (27, 1)]),
        (27, 3, 12, None, [(3, 12), (9, 4), (27, 2)]),
        (27, 3, 2, None, [(9, 2), (27, 1)]),
        (27, 3, 8, None, [(3, 8), (9, 3), (27, 1)]),  # rounded up, 3 would be left after one
        (27, 3, 1, None, [(27, 1)]),
        (27, 3, 81, None, [(1, 81), (3, 27), (9, 9), (27, 3)]),
        (10, 3, 9, None, [(1, 9), (3, 3), (10, 1)]),
        (10, 2, 100, None, [(1, 100), (2, 50), (5, 25), (10, 13)]),
        (27, 3, 9, 1, [(1, 9), (3, 3), (27, 1)]),  # a single setting meets no other
        (27, 3, 30, 5, [(5, 30), (9, 10), (27, 4)]),
        (27, 3, 9, 20, [(20, 9), (27, 3)]),
    ],
)
def test_the_rungs(epochs, factor, settings, start, expected):
    rungs = plan_rungs(epochs, factor, settings, start)
    assert [(rung.epochs, rung.settings) for rung in rungs] == expected
    assert [rung.number for rung in rungs] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize(
    ("objective", "count", "expected"),
    [
        ("val/accuracy", 2, ["c", "a"]),
        ("val/accuracy", 3, ["c", "a", "b"]),
        ("val/accuracy", 9, ["c", "a", "b", "e"]),
        ("val/loss", 2, ["e", "a"]),
    ],
)
def test_the_best_go_on_and_equal_ones_by_name(objective, count, expected):
    scores = {"b": 0.5, "a": 0.5, "c": 0.75, "d": None, "e": 0.25}
    assert choose_survivors(scores, count, objective) == expected


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["sweep.halving=1"], "sweep.halving=1: must be 2..100 or null"),
        (["sweep.halving_start=1"], "sweep.halving_start=1: needs sweep.halving, as 3"),
        (
            ["sweep.halving=2", "sweep.halving_start=4"],
            "sweep.halving_start=4: at most one less than train.epochs=4",
        ),
        (
            ["sweep.halving=5"],
            "sweep.halving=5: the first rung would be before epoch 1 of train.epochs=4; "
            "give sweep.halving_start=1 or more epochs",
        ),
        (
            ["sweep.halving=2", "run.until=1"],
            "sweep.halving=2: it sets run.until itself; leave run.until out",
        ),
        (
            ["sweep.halving=2", "resume=never"],
            "sweep.halving=2: continues its own runs, which resume=never forbids; leave resume out",
        ),
        (
            ["sweep.halving=2", "sweep.objective=test/accuracy"],
            "sweep.halving=2: ranks by sweep.objective=test/accuracy during the training; "
            "choose val/accuracy, or set train.test_each_epoch=true",
        ),
        (
            ["sweep.halving=2", "train.epochs=4,8"],
            "sweep.halving=2: the jobs have train.epochs 4, 8; give all jobs the same",
        ),
        (
            ["sweep.halving=2", "train.epochs=10", "augment.flip_only_fraction=null,0.1"],
            "sweep.halving=2: the jobs have augment.flip_only_fraction null, 0.1; a rung may come "
            "before the epochs in which they differ; give all jobs the same",
        ),
        (
            ["sweep.halving=2,3"],
            "sweep.halving=2,3: may not be swept, it belongs to the whole sweep; give one value",
        ),
        (
            ["run.until=1,2"],
            "run.until=1,2: may not be swept, it makes no other run; give one value",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides, error):
    with pytest.raises(ConfigError) as info:
        check_command(parse_command([*FOUR, LRS, *overrides]))
    assert str(info.value) == error


def test_a_single_run_is_not_halved():
    with pytest.raises(ConfigError, match=r"sweep\.halving=3: needs -m"):
        check_command(parse_command([*TINY, "sweep.halving=3"]))


def make_grid(*overrides):
    """Returns the jobs of a grid and its section `sweep`."""
    command = parse_command([*FOUR, "sweep.halving=2", *overrides])
    grid = expand_sweep(command, compose_outline(command))
    return grid.configs(), grid.sweep


def entered(jobs, sweep):
    """Returns the learning rates of the runs that enter each rung."""
    rungs = run_rungs(jobs, sweep)
    return [[config.optimizer.lr for config in rung.jobs.values()] for rung in rungs]


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_grid(LRS)


def test_a_rung_ranks_by_its_own_epoch(grid):
    jobs, sweep = grid
    histories = [[0.5, 0.1, 0.9, 0.9], [0.4, 0.2], [0.1, 0.9, 0.9], [0.2, 0.8]]
    for config, history in zip(jobs.values(), histories, strict=True):
        write_epochs(config, history)
    assert entered(jobs, sweep) == [[0.01, 0.02, 0.03, 0.05], [0.01, 0.02], [0.02]]


def test_the_jobs_of_a_rung_pause_at_its_epoch_and_those_of_the_last_do_not(grid):
    jobs, sweep = grid
    for config in jobs.values():
        write_epochs(config, [0.5, 0.5])
    rungs = list(run_rungs(jobs, sweep))
    assert [{config.run.until for config in rung.jobs.values()} for rung in rungs] == [
        {1},
        {2},
        {None},
    ]
    for job, launched in zip(rungs[0].jobs, rungs[0].launched_jobs(), strict=True):
        assert launched == (*job, "run.until=1")
    assert list(rungs[-1].launched_jobs()) == list(rungs[-1].jobs)
    assert [rung.line() for rung in rungs] == [
        "rung 1   4 runs to epoch 1",
        "rung 2   2 runs to epoch 2",
        "rung 3   1 run to epoch 4",
    ]


@pytest.mark.parametrize("state", ["failed", "paused"])
def test_a_run_that_failed_or_has_no_number_is_out(grid, state):
    jobs, sweep = grid
    best, *others = jobs.values()
    write_epochs(best, [] if state == "failed" else [None], state)
    for config in others:
        write_epochs(config, [0.5, 0.5])
    rungs = entered(jobs, sweep)
    assert len(rungs[1]) == 2
    assert best.optimizer.lr not in rungs[1]


def test_after_a_failed_run_the_rungs_may_end(grid):
    jobs, sweep = grid
    first, *others = jobs.values()
    write_epochs(first, [], "failed")
    for config in others:
        write_epochs(config, [0.5])
    assert len(entered(jobs, replace(sweep, on_error="stop"))) == 1
    assert len(entered(jobs, sweep)) == 2


@pytest.mark.parametrize("state", ["running", "interrupted", "not started"])
def test_a_run_that_has_not_ended_leaves_the_rung_undecided(grid, state):
    jobs, sweep = grid
    first, *others = jobs.values()
    if state != "not started":
        write_epochs(first, [], state)
    for config in others:
        write_epochs(config, [0.5])
    (rung,) = run_rungs(jobs, sweep)
    assert has_work(rung)
    advice = "run the same command again"
    if state == "not started":
        advice += ", or leave these jobs out (sweep.where)"
    line = f"rung 1 is undecided, epochs are missing: {run_name(first)}; {advice}"
    assert undecided_line(rung) == line


def test_a_rung_that_a_failed_run_has_stopped_names_what_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_grid("optimizer.lr=0.01,0.02", "sweep.on_error=stop")
    first, second = jobs.values()
    write_epochs(first, [], "failed")
    (rung,) = run_rungs(jobs, sweep)
    assert undecided_line(rung) == (
        f"rung 1 is undecided, epochs are missing: {run_name(second)}; "
        "sweep.retry_failed=true tries again"
    )


def test_a_run_that_was_interrupted_in_a_later_rung_has_its_score(grid):
    jobs, sweep = grid
    first, *others = jobs.values()
    write_epochs(first, [0.9, 0.9, 0.9], "interrupted")
    for config in others:
        write_epochs(config, [0.5, 0.5])
    rungs = list(run_rungs(jobs, sweep))
    assert [has_work(rung) for rung in rungs] == [False, False, True]
    assert list(rungs[-1].jobs.values()) == [first]


def test_a_failed_run_is_launched_again_on_request(grid):
    jobs, _ = grid
    retried, sweep = make_grid(LRS, "sweep.retry_failed=true")
    for config in jobs.values():
        write_epochs(config, [], "failed")
    assert not has_work(next(run_rungs(*grid)))
    assert has_work(next(run_rungs(retried, sweep)))


def test_a_run_of_fewer_epochs_that_has_stopped_early_is_ranked_by_its_last(grid):
    jobs, sweep = grid
    first, *others = jobs.values()
    write_epochs(first, [0.9], "finished")
    folder = records.run_dir(first)
    directory.write_result(folder, "finished", **{"test/accuracy": 0.9})
    for name in ("predictions.npz", "events.out.tfevents.1"):
        (folder / name).write_text("x")
    for config in others:
        write_epochs(config, [0.5, 0.6])
    assert entered(jobs, sweep)[-1] == [first.optimizer.lr]


def test_a_setting_is_the_mean_of_its_seeds_and_goes_on_with_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, sweep = make_grid("optimizer.lr=0.01,0.02", "sweep.repeats=2")
    for config, score in zip(jobs.values(), [0.9, 0.1, 0.6, 0.6], strict=True):
        write_epochs(config, [score] * 2)
    (_, last) = run_rungs(jobs, sweep)
    chosen = [(config.optimizer.lr, config.seed) for config in last.jobs.values()]
    assert chosen == [(0.02, 0), (0.02, 1)]


def rows_of(folder):
    (path,) = Path(folder, "sweeps").glob("*/results.csv")
    with open(path) as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def epochs_of(folder):
    """Returns how many epochs each run has, each of which was trained once."""
    epochs = {}
    for path in Path(folder).glob("*/run.log"):
        lines = [line.split("/")[0] for line in path.read_text().splitlines()]
        trained = [line for line in lines if line.startswith("epoch ")]
        assert len(trained) == len(set(trained))
        epochs[path.parent.name] = len(trained)
    return epochs


@pytest.mark.process
@pytest.mark.parametrize(
    ("repeats", "rungs"),
    [
        (
            1,
            [
                "rung 1   4 runs to epoch 1   2 go on   (val/accuracy)",
                "rung 2   2 runs to epoch 2   1 goes on",
                "rung 3   1 run  to epoch 4",
            ],
        ),
        pytest.param(
            2,
            [
                "rung 1   8 runs to epoch 1   4 go on   (val/accuracy)",
                "rung 2   4 runs to epoch 2   2 go on",
                "rung 3   2 runs to epoch 4",
            ],
            marks=pytest.mark.slow,  # the same with two seeds
        ),
    ],
)
def test_every_run_has_the_bits_of_the_full_grid(command, repeats, rungs):
    options = [*FOUR, SCHEDULES, "train.keep=all", f"sweep.repeats={repeats}"]
    assert command(*options, "run.root=full")[0] == 0
    code, out, err = command(*options, "run.root=halved", "sweep.halving=2")
    assert (code, err) == (0, "")
    epochs = (
        f"{8 * repeats} of {16 * repeats} epochs: 0 runs finished, 0 paused, "
        f"{8 * repeats} epochs to train, 1 job at a time; "
        "their time is unknown, no run of this kind has finished on this host"
    )
    assert out.splitlines()[:4] == [*rungs, epochs]
    assert sorted(epochs_of("halved").values()) == sorted([1, 1, 2, 4] * repeats)
    paths = sorted(Path("halved").glob("*/checkpoints/*.pt"))
    assert len(paths) == 8 * repeats
    for path in paths:
        actual = dict(named_values(checkpoint.load(path)))
        expected = dict(named_values(checkpoint.load("full" / path.relative_to("halved"))))
        assert expected.keys() == actual.keys()
        assert all(bitwise_equal(expected[name], actual[name]) for name in expected)
    for path in Path("halved").glob("*/predictions.npz"):
        assert path.read_bytes() == ("full" / path.relative_to("halved")).read_bytes()


def run_reference(folder, *overrides):
    """Runs a halving sweep that nothing disturbs; returns the folder of its runs."""
    from vggexp.__main__ import main

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["vggexp"])
        assert main([*FOUR, *overrides, "sweep.halving=2"]) == 0
    return folder / "outputs"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a halving sweep of four runs in three rungs."""
    return run_reference(tmp_path_factory.mktemp("reference"), LRS)


@pytest.mark.process
def test_the_table_has_the_finished_run_first_and_then_the_rungs(reference):
    rows = list(rows_of(reference).values())
    assert [row["state"] for row in rows] == ["finished", "paused", "paused", "paused"]
    assert [row["rung"] for row in rows] == ["3", "2", "1", "1"]
    for row in rows:
        folder = reference / row["run"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        scores = [row[f"val/accuracy at epoch {epoch}"] for epoch in (1, 2, 4)]
        expected = [lines[epoch - 1]["val/accuracy"] for epoch in (1, 2, 4) if epoch <= len(lines)]
        assert [float(score) for score in scores if score] == expected
    table = next(reference.glob("sweeps/*/results.md")).read_text()
    assert table.count("stopped at epoch 1") == 2
    assert table.count("stopped at epoch 2") == 1


def assert_decided_alike(reference):
    """Asserts that the sweep in `outputs` has the rungs and the best weights of the reference."""
    assert epochs_of("outputs") == epochs_of(reference)
    winner = next(iter(rows_of(reference)))
    digest = json.loads((reference / winner / "result.json").read_text())["weights_sha256"]
    assert result(winner)["weights_sha256"] == digest


@pytest.mark.process
@pytest.mark.parametrize(
    "launcher",
    [
        "local",
        "basic",
        "joblib",
        # Starts seven times Python; the next test has three.
        pytest.param("submitit_local", marks=pytest.mark.slow),
    ],
)
def test_every_launcher_decides_the_same(command, reference, launcher):
    options = [*FOUR, LRS, "sweep.halving=2", f"hydra/launcher={launcher}"]
    if launcher == "local":
        options.append("hydra.launcher.jobs=3")
    # The processes of joblib stay in the folder of the test that started them.
    options.append(f"run.root={Path('outputs').absolute()}")
    assert command(*options)[0] == 0
    assert_decided_alike(reference)


@pytest.mark.process
def test_two_jobs_of_submitit_decide_the_same(command, tmp_path_factory):
    two = ["optimizer.lr=0.01,0.02", "train.epochs=2"]
    reference = run_reference(tmp_path_factory.mktemp("two"), *two)
    assert command(*FOUR, *two, "sweep.halving=2", "hydra/launcher=submitit_local")[0] == 0
    assert sorted(epochs_of(reference).values()) == [1, 2]
    assert_decided_alike(reference)


@pytest.mark.process
def test_a_sweep_that_was_interrupted_in_a_rung_goes_on(command, reference):
    shutil.copytree(reference, "outputs")
    winner, second, *others = rows_of(reference)
    shutil.rmtree(Path("outputs", others[0]))  # not started in rung 1
    Path("outputs", second, "result.json").write_text('{"state": "running"}')
    shutil.rmtree(Path("outputs", winner))
    lr = rows_of(reference)[winner]["optimizer.lr"]
    names = [f"run.name={winner}", f"optimizer.lr={lr}"]
    command(*FOUR[1:], *names, "run.until=3")  # interrupted in rung 3
    Path("outputs", winner, "result.json").write_text('{"state": "running"}')
    assert command(*FOUR, LRS, "sweep.halving=2")[0] == 0
    assert epochs_of("outputs") == epochs_of(reference)
    states = {name: result(name)["state"] for name in (winner, second, *others)}
    assert states == {winner: "finished"} | dict.fromkeys([second, *others], "paused")
    assert not list(Path("outputs", second, "checkpoints").glob("*3.pt"))


@pytest.mark.process
def test_a_run_that_cannot_continue_is_no_paused_one(command, reference):
    """Its result is that of the rung before."""
    shutil.copytree(reference, "outputs")
    winner, second, *_ = rows_of(reference)
    shutil.rmtree(Path("outputs", winner))
    lr = rows_of(reference)[winner]["optimizer.lr"]
    command(*FOUR[1:], f"run.name={winner}", f"optimizer.lr={lr}", "run.until=2")
    for path in Path("outputs", winner, "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    code, out, _ = command(*FOUR, LRS, "sweep.halving=2")
    assert code == 7
    assert f"failed   job 1/1  {winner}  " in out
    rows = rows_of("outputs")
    assert [*rows][-1] == winner
    assert (rows[winner]["state"], rows[second]["state"]) == ("failed", "paused")
    assert "no checkpoint verifies" in rows[winner]["error"]


@pytest.mark.process
def test_a_run_that_has_lost_its_checkpoint_is_out_and_the_others_go_on(command, reference):
    """The second of rung 1 is damaged before rung 2, which the winner enters alone."""
    shutil.copytree(reference, "outputs")
    winner, second, *_ = rows_of(reference)
    for name in (winner, second):
        shutil.rmtree(Path("outputs", name))
        lr = rows_of(reference)[name]["optimizer.lr"]
        command(*FOUR[1:], f"run.name={name}", f"optimizer.lr={lr}", "run.until=1")
    for path in Path("outputs", second, "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    for _ in range(2):
        assert command(*FOUR, LRS, "sweep.halving=2")[0] == 7
        rows = rows_of("outputs")
        assert (rows[winner]["state"], rows[winner]["rung"]) == ("finished", "3")
        assert (rows[second]["state"], rows[second]["rung"]) == ("failed", "2")
        assert rows[second]["error"].endswith("move the run's folder away to start over")
    shutil.move(Path("outputs", second), "away")
    assert command(*FOUR, LRS, "sweep.halving=2")[0] == 0
    assert epochs_of("outputs") == epochs_of(reference)


@pytest.mark.process
def test_a_finished_halving_sweep_trains_nothing(command, reference):
    shutil.copytree(reference, "outputs")
    times = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("vgg*/*")}
    code, out, _ = command(*FOUR, LRS, "sweep.halving=2")
    assert code == 0
    assert out.count("  (done before)") == 3
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").glob("vgg*/*")} == times


@pytest.mark.process
def test_another_factor_and_the_full_grid_use_what_is_there(command, reference):
    shutil.copytree(reference, "outputs")
    assert command(*FOUR, LRS, "sweep.halving=4")[0] == 0  # 4 runs to epoch 1, 1 to the end
    assert epochs_of("outputs") == epochs_of(reference)
    assert command(*FOUR, LRS)[0] == 0
    assert set(epochs_of("outputs").values()) == {4}
    assert {row["state"] for row in rows_of("outputs").values()} == {"finished"}


@pytest.mark.process
def test_jobs_that_are_added_join_at_their_rung(command, reference):
    shutil.copytree(reference, "outputs")
    shutil.rmtree("outputs/sweeps")
    assert (
        command(*FOUR, f"{LRS},0.04", "sweep.halving=2", "hydra.sweep.dir=outputs/sweeps/x")[0] == 0
    )
    epochs = epochs_of("outputs")
    assert len(epochs) == 5
    shutil.rmtree("outputs")
    command(*FOUR, f"{LRS},0.04", "sweep.halving=2")
    alone = epochs_of("outputs")
    assert all(epochs[name] >= alone[name] for name in alone)


@pytest.mark.process
def test_a_setting_with_a_failed_seed_is_out(command):
    pairs = "sweep.pairs=[{optimizer.lr:100},{optimizer.lr:0.01},{optimizer.lr:0.02}]"
    options = [*FOUR, pairs, "sweep.repeats=2", "arch.norm=none", "arch.init=paper"]
    options += ["sweep.halving=2", "sweep.halving_start=2"]
    code, _, err = command(*options)
    assert code == 7
    assert "2 of 6 jobs did not finish" in err
    rows = rows_of("outputs")
    states = sorted((row["state"], row["rung"]) for row in rows.values())
    assert states == [("failed", "1")] * 2 + [("finished", "2")] * 2 + [("finished", "2")] * 2
    code, again, _ = command(*options)
    assert code == 7
    assert again.count("  (done before)") == 2


def test_a_filter_and_the_dry_run(command):
    options = [*FOUR, LRS, "sweep.halving=2", "sweep.where=optimizer.lr < 0.04"]
    code, out, _ = command(*options, "sweep.dry_run=true")
    assert code == 0
    assert out.splitlines()[-5:-1] == [
        "rung 1   3 runs to epoch 1   2 go on   (val/accuracy)",
        "rung 2   2 runs to epoch 2   1 goes on",
        "rung 3   1 run  to epoch 4",
        "7 of 12 epochs: 0 runs finished, 0 paused, 7 epochs to train, 1 job at a time; "
        "their time is unknown, no run of this kind has finished on this host",
    ]
    assert not Path("outputs").exists()
