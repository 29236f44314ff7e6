"""Tests searches: Optuna's distributions, and trials through failures, kills and repetition."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_hash
from vggexp.errors import DataError, ResourceError
from vggexp.runs.directory import read_overrides, read_result
from vggexp.sweep.expand import compose_run
from vggexp.sweep.search_space import SearchAxis, SearchSettings
from vggexp.sweep.study import (
    RUN,
    TrialResult,
    _distribution,
    next_trials,
    open_study,
    proposed_trials,
    record_result,
    repeat_failed_trials,
    trial_line,
)
from vggexp.system.locks import lock_run_dir

SEARCH = ["-m", "hydra/sweeper=optuna", *TINY, "train.epochs=1"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
LR = "optimizer.lr=tag(log,interval(0.0001,0.1))"


def search(trials: int, *overrides: str) -> list[str]:
    return [*SEARCH, f"hydra.sweeper.n_trials={trials}", *overrides]


def sweep_folder() -> Path:
    (folder,) = Path("outputs/sweeps").iterdir()
    return folder


def stored_trials() -> list:
    return proposed_trials(open_study(sweep_folder()))


def states() -> list[str]:
    return [trial.state.name for trial in stored_trials()]


def run_dir(trial) -> Path:
    return Path(trial.user_attrs[RUN])


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (SearchAxis(low=1.0, high=2.0), FloatDistribution(1.0, 2.0)),
        (SearchAxis(low=1e-4, high=0.1, log=True), FloatDistribution(1e-4, 0.1, log=True)),
        (SearchAxis(low=1, high=5), IntDistribution(1, 5)),
        (SearchAxis(low=1, high=64, log=True), IntDistribution(1, 64, log=True)),
        (SearchAxis(low=1, high=7, step=3), IntDistribution(1, 7, step=3)),
        (
            SearchAxis(("0.1", "0.2", "0.3", "0.4"), low=0.1, high=0.4, step=0.1),
            FloatDistribution(0.1, 0.4, step=0.1),
        ),
        (SearchAxis(("none", "batch")), CategoricalDistribution(["none", "batch"])),
    ],
)
def test_an_axis_is_a_distribution(axis, expected):
    assert _distribution(axis) == expected


def propose(folder: Path, settings: SearchSettings, *kills: int) -> list[dict]:
    """Returns the values that a search proposes, without runs.

    The search is killed once it has proposed its trial of each number in `kills`, before the
    results of that batch are recorded. Then it goes on.
    """
    axes = {
        "x": SearchAxis(low=0.0, high=1.0),
        "y": SearchAxis(("a", "b")),
        "z": SearchAxis(low=1, high=9, step=1),
    }
    folder.mkdir()
    for kill in (*kills, settings.n_trials + 1):
        study = open_study(folder, "name", "val/accuracy")
        trials = next_trials(study, axes, settings, repr)
        while trials and trials[-1].number + 1 < kill:
            for trial in trials:
                value = trial.params["x"] - (trial.params["y"] == "a")
                record_result(study, trial, TrialResult(value))
            trials = next_trials(study, axes, settings, repr)
    return [trial.params for trial in proposed_trials(study)]


@pytest.mark.process
@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_search_that_was_killed_proposes_the_same(tmp_path, sampler, parallel):
    settings = SearchSettings(24, sampler, 0, parallel)
    proposed = propose(tmp_path / "a", settings)
    assert len(proposed) == 24
    assert len({tuple(values.values()) for values in proposed}) == 24
    assert propose(tmp_path / "b", settings, 5, 12, 13, 24) == proposed
    assert propose(tmp_path / "c", replace(settings, seed=1)) != proposed
    if sampler == "tpe":  # after its ten random trials it stays in the better half
        choices = [values["y"] for values in proposed[10:]]
        assert choices.count("b") > 0.7 * len(choices)


@pytest.mark.process
def test_a_bracket_that_a_kill_cut_stays_the_same(tmp_path):
    axes = {"x": SearchAxis(low=0.0, high=1.0)}
    settings = SearchSettings(8, "tpe", 0, 4)

    def record(study, trials):
        for trial in trials:
            if trial.number % 2:
                result = TrialResult(0.5, "", 3, {1: 0.25, 3: 0.5})
            else:
                result = TrialResult(trial.params["x"], "", None, {1: 0.5})
            record_result(study, trial, result)

    (tmp_path / "whole").mkdir()
    study = open_study(tmp_path / "whole", "name", "val/accuracy")
    while trials := next_trials(study, axes, settings, repr, in_brackets=True):
        assert len(trials) == 4
        record(study, trials)
    (tmp_path / "cut").mkdir()
    cut = open_study(tmp_path / "cut", "name", "val/accuracy")
    record(cut, next_trials(cut, axes, settings, repr, in_brackets=True)[:2])
    cut = open_study(tmp_path / "cut")
    trials = next_trials(cut, axes, settings, repr, in_brackets=True)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    record(cut, trials[2:])
    record(cut, next_trials(cut, axes, settings, repr, in_brackets=True))
    for ended in (study, cut):
        assert next_trials(ended, axes, settings, repr, in_brackets=True) == []
    assert [trial.params for trial in cut.trials] == [trial.params for trial in study.trials]


@pytest.mark.process
def test_a_stopped_trial_is_pruned_with_its_value_there(command):
    halving = ["train.epochs=2", "sweep.halving=2", "sweep.objective=train/loss"]
    argv = search(4, LR, *halving, "--config-dir=.")
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert out.startswith("sweep    4 trials: 0 ended, 4 to run for at most 8 epochs, ")
    assert states().count("PRUNED") == 3 or states().count("PRUNED") == 2
    with open(next(Path("outputs/sweeps").glob("*/results.csv"))) as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    for trial in stored_trials():
        assert read_overrides(run_dir(trial))[0] == "--config-dir=."
        lines = (run_dir(trial) / "metrics.jsonl").read_text().splitlines()
        losses = {row["epoch"]: row["train/loss"] for row in map(json.loads, lines)}
        assert trial.value == losses[len(losses)]
        assert trial.intermediate_values == losses
        if trial.state.name == "PRUNED":
            assert f"  {trial.value:.4f}  stopped at epoch 1" in out
        row = table[run_dir(trial).name]
        assert row["rung"] == str(len(losses))
        for epoch, loss in losses.items():
            assert float(row[f"train/loss at epoch {epoch}"]) == loss
    trained = [path.read_text() for path in Path("outputs").glob("*/run.log")]
    assert command(*argv)[0] == 0
    assert [path.read_text() for path in Path("outputs").glob("*/run.log")] == trained


@pytest.mark.parametrize(
    ("override", "error"),
    [
        (
            "hydra.sweeper.parallel=2",
            "hydra.sweeper.parallel=2: a bracket of fewer trials than sweep.halving=3 stops none; "
            "at least 3",
        ),
        (
            "train.epochs=3,6",
            "sweep.halving=3: the jobs have train.epochs 3, 6; give all jobs the same",
        ),
    ],
)
def test_what_does_not_fit_halving_is_refused(command, override, error):
    code, _, err = command(*search(4, LR, "train.epochs=3", "sweep.halving=3", override))
    assert (code, err) == (2, f"vggexp: error: {error}\n")


@pytest.mark.process
def test_data_that_goes_during_a_search_is_one_line(command, monkeypatch):
    def fail(*_):
        raise DataError("data.root=/gone: no such directory")

    monkeypatch.setattr("vggexp.sweep.study.next_trials", fail)
    code, _, err = command(*search(1, LR))
    assert code == 3
    assert err.splitlines()[-1] == "vggexp: error: data.root=/gone: no such directory"


@pytest.mark.process
def test_more_trials_are_added_to_the_existing_ones(command):
    for trials, started in ((1, 1), (2, 1), (2, 0)):
        code, out, err = command(*search(trials, LR))
        assert (code, err) == (0, "")
        assert out.count("\nstarted ") == started
        assert out.count("| finished |") == trials
    assert len({trial.params["optimizer.lr"] for trial in stored_trials()}) == 2


@pytest.mark.process
def test_the_trials_of_the_launcher_run_together(command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # two jobs at a time
    code, out, _ = command(*search(2, LR))
    assert (code, " 2 trials at a time" in out) == (0, True)
    first, second = stored_trials()
    assert second.datetime_start < first.datetime_complete


@pytest.mark.process
@pytest.mark.parametrize(("objective", "best"), [("val/loss", min), ("train/accuracy", max)])
def test_a_search_improves_its_objective(command, objective, best):
    axis = "optimizer.lr=0.000001,0.05"
    code, out, _ = command(*search(4, axis, f"sweep.objective={objective}", "train.epochs=2"))
    study = open_study(sweep_folder())
    with open(sweep_folder() / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert code == 0
    assert len(rows) == 2, "a setting that is proposed again is not run again"
    assert out.count("\nstarted ") == 2
    assert len(proposed_trials(study)) == 4
    values = {row["optimizer.lr"]: float(row[objective]) for row in rows}
    assert rows[0]["optimizer.lr"] == "0.05"
    assert study.best_params["optimizer.lr"] == "0.05"
    assert study.best_value == values["0.05"]
    assert study.best_value == best(values.values())
    assert study.best_value == read_result(run_dir(study.best_trial))[objective]
    assert (sweep_folder() / "results.md").read_text().count("\n") == 4


@pytest.mark.process
def test_a_failed_trial_does_not_end_the_search(command):
    axes = [
        "optimizer.lr=0.01,0.02,100",
        "train.accumulate=int(interval(1,9))",
        "data.batch_size=32,4",
        "arch.init=paper",
    ]
    code, out, err = command(*search(8, *axes))
    trials = stored_trials()
    # An invalid trial has more micro-batches than images in a batch.
    invalid = [trial for trial in trials if not trial.user_attrs[RUN]]
    diverged = []
    for trial in trials:
        if trial.params["optimizer.lr"] == "100" and trial not in invalid:
            diverged.append(trial)
    failed = [*invalid, *diverged]
    assert len(trials) == 8
    assert invalid
    assert diverged
    assert len(failed) < 8
    assert code == 7
    table = [line for line in out.splitlines() if line.startswith("|")]
    rows = [line for line in table[2:] if "| finished |" not in line]
    assert f"{len(rows)} of {len(table) - 2} runs have no val/accuracy" in err
    assert err.count("\n") == 1
    assert out.count("  failed: train.accumulate=") == len(invalid)
    assert sum("more than data.batch_size=4" in line for line in rows) == len(invalid)
    assert out.count("\nfailed   ") == len(diverged)
    for trial in trials:
        assert (trial.state.name == "FAIL") == (trial in failed)
    assert command(*search(9, *axes))[1].count("trial 9 of 9") == 2


@pytest.mark.process
@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_search_ended_by_a_signal_continues(command, signum):
    argv = search(3, "optimizer.lr=tag(log,interval(0.0001,0.01))", "train.epochs=15")
    process = subprocess.Popen(
        [sys.executable, "-m", "vggexp", *argv], stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    while len(list(Path("outputs").glob("*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # until the second trial has an epoch
    process.send_signal(signum)
    assert process.wait(60) == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert states() == ["COMPLETE", "RUNNING"]
    with open(sweep_folder() / "study.log", "a") as file:
        file.write('{"op_code":4,"work')  # what a kill in the middle of a line leaves
    code, out, _ = command(*argv)
    trials = stored_trials()
    assert code == 0
    assert states() == ["COMPLETE"] * 3
    assert "trial 1 of " not in out
    attempts = []
    for trial in trials:
        attempts.append(json.loads((run_dir(trial) / "env.json").read_text())["attempts"])
        assert trial.value == read_result(run_dir(trial))["val/accuracy"]
    assert attempts == [1, 2, 1]
    run_dirs = {path.parent for path in Path("outputs").glob("*/result.json")}
    assert {run_dir(trial) for trial in trials} == run_dirs
    assert len(run_dirs) == 3


@pytest.mark.process
def test_a_trial_whose_proposal_a_kill_cut_never_counts(command):
    command(*search(1, LR))
    open_study(sweep_folder()).ask()  # without values
    assert command(*search(2, LR))[0] == 0
    trials = open_study(sweep_folder()).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert states() == ["COMPLETE"] * 2


def block(name: str) -> Path:
    """Makes a run fail until the returned file is removed: it stands where a folder belongs."""
    obstacle = Path("outputs", name, "checkpoints")
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    return obstacle


@pytest.mark.process
def test_failed_trials_are_repeated_on_request_as_in_a_grid(command):
    axis = "optimizer.lr=0.01,0.02"
    argv = [*TINY, "train.epochs=1"]
    obstacles = []
    for lr in ("0.01", "0.02"):
        digits = run_hash(compose_run(parse_command([*argv, f"optimizer.lr={lr}"])))
        obstacles.append(block(f"vgg11-hidden16-w0.05-synthetic-32px-lr{lr}-{digits}"))
    code, out, err = command(*search(4, axis))
    assert code == 7
    assert "2 of 2 runs have no val/accuracy" in err  # two of the trials have never run
    lines = [line for line in out.splitlines() if line.startswith("trial ")]
    assert sum("  failed: outputs/" in line for line in lines) == 4
    assert out.count("| failed |") == 2
    for obstacle in obstacles:
        obstacle.unlink()
    code, out, _ = command(*search(4, axis))
    assert (code, "\nstarted" in out) == (7, False)
    assert command(*argv, "optimizer.lr=0.01")[0] == 0  # by hand
    code, out, err = command(*search(4, axis))
    assert "1 of 2 runs have no val/accuracy" in err
    code, out, err = command(*search(5, axis, "sweep.retry_failed=true"))
    assert (code, err) == (0, "")
    assert out.count("\nstarted ") == 1
    assert out.count("| finished |") == 2
    assert "trial 5 of 5" in out
    trials = stored_trials()
    assert states() == ["COMPLETE"] * 5
    for trial in trials:
        assert trial.value == read_result(run_dir(trial))["val/accuracy"]


def test_a_repetition_that_a_kill_interrupted_is_not_lost(tmp_path):
    axes = {"x": SearchAxis(low=0.0, high=1.0)}
    settings = SearchSettings(3, "random", 0, 2)
    study = open_study(tmp_path, "name", "val/loss")
    for _ in range(2):
        for trial in next_trials(study, axes, settings, repr):
            record_result(study, trial, TrialResult(None, "no disk"))
    params = [trial.params for trial in proposed_trials(study)]
    repeat_failed_trials(study, "val/loss", retry_failed=True)
    repeat_failed_trials(study, "val/loss", retry_failed=True)  # they already wait
    study = open_study(tmp_path)
    started = next_trials(study, axes, settings, repr)
    assert [trial.params for trial in started] == params[:2]
    assert [trial.params for trial in next_trials(study, axes, settings, repr)] == params[:2]
    for trial in started:
        record_result(study, trial, TrialResult(trial.params["x"]))
    (last,) = next_trials(study, axes, settings, repr)
    assert trial_line(study, last, axes, 3, "val/loss") == f"trial 3 of 3  x={params[2]['x']}"
    record_result(study, last, TrialResult(9.0))
    assert next_trials(study, axes, settings, repr) == []
    assert [trial.params for trial in proposed_trials(study)] == params
    assert study.best_value == min(trial.params["x"] for trial in started)


@pytest.mark.process
def test_trials_without_an_objective_have_a_reason(command):
    # The only step makes weights so large that the losses of the evaluation overflow.
    overrides = ["sweep.objective=val/loss", "optimizer=adam", "optimizer.lr=90,100"]
    overrides += ["data.batch_size=86", "arch.hidden=[16,16,16,16,16,16,16,16,16,16,16,16]"]
    code, out, err = command(*search(2, *overrides))
    reason = "the test loss is not finite with the weights of epoch 1"
    assert code == 7
    assert out.count(f"  failed: {reason}") == 2
    assert "2 of 2 runs have no val/loss" in err
    with open(sweep_folder() / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["error"].partition(";")[0] for row in rows} == {reason}


@pytest.mark.process
def test_the_folder_of_another_search_is_refused(command):
    argv = [*search(1, LR), "hydra.sweep.dir=mine"]
    assert command(*argv)[0] == 0
    assert command(*search(2, LR), "hydra.sweep.dir=mine")[0] == 0
    code, _, err = command(*argv, "optimizer.momentum=0.5")
    assert code == 4
    assert "mine: holds the search search-optimizer.lr-" in err
    with lock_run_dir(Path("mine")):
        assert command(*argv)[0] == 8
    Path("mine/study.log").write_text('{"op_code":99}\n[]\n')
    assert command(*argv)[0] == 4
    Path("mine/study.log").unlink()
    Path("mine/study.log").mkdir()
    code, _, err = command(*argv)
    assert code == 6
    assert err == "vggexp: error: mine/study.log: cannot be written: Is a directory\n"


def test_the_study_is_not_written_through_a_link(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    (tmp_path / "study.log").symlink_to(notes)
    with pytest.raises(ResourceError, match=r"study\.log: cannot be written: a link, and no file"):
        open_study(tmp_path, "a", "val/accuracy")
    assert notes.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.process
def test_several_trials_run_at_a_time(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.chdir(tmp_path)
    argv = search(5, LR, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = subprocess.run(
        [sys.executable, "-m", "vggexp", *argv], capture_output=True, env=ENVIRONMENT
    )
    trials = stored_trials()
    assert process.returncode == 0
    assert states() == ["COMPLETE"] * 5
    assert trials[1].datetime_start < trials[0].datetime_complete  # proposed in twos
    assert trials[0].datetime_complete <= trials[2].datetime_start
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5
