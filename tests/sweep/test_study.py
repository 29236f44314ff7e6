"""A search: its axes as Optuna's distributions, its refusals, its trials through failures, kills and repetition."""

import csv
import json
import os
import shlex
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
from vggexp.runs.directory import read_result
from vggexp.sweep.expand import load_command
from vggexp.sweep.search_space import SearchAxis, SearchSettings
from vggexp.sweep.study import RUN, _distribution, finished_trials, next_trials, open_study, tell
from vggexp.system.locks import lock_run_dir

ROOT = Path(__file__).parents[2]
SEARCH = ["-m", "hydra/sweeper=optuna", *TINY, "train.epochs=1"]
LR = "optimizer.lr=tag(log,interval(0.0001,0.1))"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def trials(count: int, *more: str) -> list[str]:
    return [*SEARCH, f"hydra.sweeper.n_trials={count}", *more]


def study(root: str = "outputs"):
    (folder,) = Path(root).glob("sweeps/*")
    return open_study(folder)


def states(found) -> list[str]:
    return [trial.state.name for trial in finished_trials(found)]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("optimizer.lr=interval(1,2)", FloatDistribution(1.0, 2.0)),
        (LR, FloatDistribution(0.0001, 0.1, log=True)),
        ("seed=int(interval(1,5))", IntDistribution(1, 5)),
        ("seed=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("seed=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("seed=range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("arch.dropout=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("arch.norm=none,batch", CategoricalDistribution(["none", "batch"])),
        (
            "arch.blocks=choice([[1,64],[1,64]],[[2,16]])",
            CategoricalDistribution(["[[1,64],[1,64]]", "[[2,16]]"]),
        ),
        ("arch=glob(vgg11*)", CategoricalDistribution(["vgg11", "vgg11_bn", "vgg11_lrn"])),
        ("seed=shuffle(3,1,2)", CategoricalDistribution(["1", "2", "3"])),
    ],
)
def test_axes_are_distributions(axis, expected):
    (only,) = load_command(parse_command(["-m", "hydra/sweeper=optuna", axis])).axes.values()
    assert _distribution(only) == expected


def test_a_fraction_of_a_range_is_written_as_a_grid_has_it():
    (axis,) = load_command(
        parse_command([*SEARCH, "arch.dropout=range(0.1,0.5,0.1)"])
    ).axes.values()
    assert [axis.text(value) for value in (0.1, 0.1 + 0.1 + 0.1, 0.4)] == [
        axis.values[0],
        *axis.values[2:],
    ]
    assert [float(value) for value in axis.values] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-15)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("hydra.sweeper.n_trials=0 seed=1,2", "hydra.sweeper.n_trials=0: must be 1..1000000"),
        (
            "hydra.sweeper.n_trials=1e2 seed=1,2",
            "hydra.sweeper.n_trials=1e2: not a whole number; write 100",
        ),
        ("hydra.sweeper.sampler=foo seed=1,2", "hydra.sweeper.sampler=foo: allowed tpe, random"),
        (
            "hydra.sweeper.parallel=0 hydra.sweeper.seed=-1 seed=1,2",
            "hydra.sweeper.seed=-1: must be 0..9223372036854775807; hydra.sweeper.parallel=0: must be 1..4096 or null",
        ),
        (
            "hydra.sweeper.trials=3 seed=1,2",
            "hydra.sweeper.trials: unknown key of Hydra; --cfg hydra prints those...",
        ),
        ("seed=1", "hydra/sweeper=optuna: no axis; give a key an interval or several values"),
        ("optimizer.lr=interval(0.1,200)", "optimizer.lr=200.0: must be > 0 and <= 100"),
        (
            "seed=range(0,9,4) data.resize=range(64,1,-1)",
            "data.resize=2: too small for 5 poolings...",
        ),
        ("+hydra.sweeper.params.x=1 x=2,3", "x: unknown key..."),
        (
            "optimizer.lr=tag(log,interval(0,1))",
            "optimizer.lr=tag(log,interval(0,1)): a logarithmic interval starts...",
        ),
        (
            "optimizer.lr=interval(1,0.1)",
            "optimizer.lr=interval(1,0.1): its start is above its end",
        ),
        (
            "optimizer.lr=tag(lgo,interval(0.1,1))",
            "optimizer.lr=tag(lgo,interval(0.1,1)): tag lgo: unknown; allowed log",
        ),
        (
            "seed=tag(log,range(1,9))",
            "seed=tag(log,range(1,9)): tag log: belongs to an interval; write tag(log,int...",
        ),
        ("run.name=x seed=1,2", "search: 2 of its settings share the folder x; they are one run"),
        (
            "resume=never seed=1,2",
            "resume=never: a search continues its own runs; choose auto, exact or force",
        ),
        (
            "data.val_fraction=0 seed=1,2",
            "sweep.objective=val/accuracy: needs a validation split, but...",
        ),
    ],
)
def test_refused(command, tmp_path, more, expected):
    code, out, err = command(*SEARCH, *shlex.split(more))
    line = err.removeprefix("vggexp: error: ")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert line.startswith(expected.removesuffix("...")) and (
        expected.endswith("...") or line == f"{expected}\n"
    )


def test_without_optuna(command, monkeypatch):
    monkeypatch.setattr("vggexp.sweep.search_space.find_spec", lambda name: None)
    advice = "hydra/sweeper=optuna: Optuna is not installed; pip install 'vggexp[search]'"
    assert command(*SEARCH, LR) == (2, "", f"vggexp: error: {advice}\n")


def test_refusing_imports_neither_torch_nor_optuna(tmp_path):
    code = f"import sys; from vggexp.__main__ import main; main({[*SEARCH, 'hydra.sweeper.n_trials=0', LR]})\n"
    code += "print({'torch', 'optuna'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path
    )
    assert (ended.stdout, ended.stderr.count("\n")) == ("set()\n", 1)


def driven(folder: Path, settings: SearchSettings, *ends: int) -> list[dict]:
    """The values that a search asks for, without runs; killed when it has asked for its trial of each number in `ends`,
    with nothing told of that batch."""
    axes = {
        "x": SearchAxis(low=0.0, high=1.0),
        "y": SearchAxis(("a", "b")),
        "z": SearchAxis(low=1, high=9, step=1),
    }
    folder.mkdir()
    for end in (*ends, settings.n_trials + 1):
        found = open_study(folder, "name", "val/accuracy")
        while batch := next_trials(found, axes, settings, repr):
            if batch[-1].number + 1 >= end:
                break
            for trial in batch:
                tell(found, trial, trial.params["x"] - (trial.params["y"] == "a"))
    return [trial.params for trial in finished_trials(found)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_search_that_was_killed_asks_what_one_in_a_piece_asks(tmp_path, sampler, parallel):
    settings = SearchSettings(24, sampler, 0, parallel)
    whole = driven(tmp_path / "a", settings)
    assert len(whole) == 24 == len({tuple(values.values()) for values in whole})
    assert driven(tmp_path / "b", settings, 5, 12, 13, 24) == whole
    assert driven(tmp_path / "c", replace(settings, seed=1)) != whole
    late = [
        values["y"] for values in whole[10:]
    ]  # after its ten random trials TPE keeps to the better half
    assert sampler == "random" or late.count("b") > 0.7 * len(late)


def test_more_trials_are_added_to_those_that_are_there(command):
    for count, new in ((1, 1), (2, 1), (2, 0)):
        code, out, err = command(*trials(count, LR))
        assert (code, err, out.count("\nstarted ")) == (0, "", new)
        assert len([line for line in out.splitlines() if "| finished |" in line]) == count
    assert len({trial.params["optimizer.lr"] for trial in finished_trials(study())}) == 2


@pytest.mark.parametrize(("objective", "best"), [("val/loss", min), ("train/accuracy", max)])
def test_it_seeks_what_the_objective_calls_better(command, objective, best):
    code, out, _ = command(
        *trials(4, "optimizer.lr=0.000001,0.05", f"sweep.objective={objective}", "train.epochs=2")
    )
    found = study()
    with open(next(Path("outputs/sweeps").glob("*/results.csv"))) as file:
        kept = list(csv.DictReader(file))
    assert code == 0 and len(kept) == 2, "a setting that comes again is not run again"
    assert out.count("\nstarted ") == 2 and len(finished_trials(found)) == 4
    values = {row["optimizer.lr"]: float(row[objective]) for row in kept}
    assert kept[0]["optimizer.lr"] == found.best_params["optimizer.lr"] == "0.05"
    assert (
        found.best_value
        == values["0.05"]
        == best(values.values())
        == read_result(_run(found.best_trial))[objective]
    )
    assert (next(Path("outputs/sweeps").glob("*")) / "results.md").read_text().count("\n") == 4


def _run(trial) -> Path:
    return Path(trial.user_attrs[RUN])


def attempts(trial) -> int:
    return json.loads((_run(trial) / "env.json").read_text())["attempts"]


def test_a_failed_trial_does_not_end_the_search(command):
    axes = [
        "optimizer.lr=0.01,0.02,100",
        "train.accumulate=int(interval(1,9))",
        "data.batch_size=32,4",
        "arch.init=paper",
    ]
    code, out, err = command(*trials(8, *axes))
    told = finished_trials(study())
    apart = [
        trial for trial in told if not trial.user_attrs[RUN]
    ]  # more micro-batches than images in a batch
    diverged = [
        trial for trial in told if trial.params["optimizer.lr"] == "100" and trial not in apart
    ]
    failed = [*apart, *diverged]
    assert len(told) == 8 and apart and diverged and len(failed) < 8
    assert code == 7 and err.endswith(
        f"{len(failed)} of 8 trials failed; their folders hold the reason in result.json\n"
    )
    assert err.count("more than data.batch_size=4") == len(apart) and out.count(
        "\nfailed   "
    ) == len(diverged)
    assert [trial.state.name == "FAIL" for trial in told] == [trial in failed for trial in told]
    assert len(
        [line for line in out.splitlines() if line.startswith("|") and "not started" in line]
    ) == len(apart)
    assert command(*trials(9, *axes))[1].count("trial 9 of 9") == 2


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_search_ended_by_a_signal_goes_on(command, tmp_path, number):
    argv = trials(3, "optimizer.lr=tag(log,interval(0.0001,0.01))", "train.epochs=15")
    process = subprocess.Popen(
        [sys.executable, "-m", "vggexp", *argv], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 60
    while len(list(Path("outputs").glob("*/metrics.jsonl"))) < 2 and time.monotonic() < limit:
        time.sleep(0.01)  # until the second trial has an epoch
    process.send_signal(number)
    assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    assert states(study()) == ["COMPLETE", "RUNNING"]
    with open(next(Path("outputs/sweeps").glob("*/study.log")), "a") as file:
        file.write('{"op_code":4,"work')  # what a kill in the middle of a line leaves
    code, out, _ = command(*argv)
    found = finished_trials(study())
    runs = {str(path.parent) for path in Path("outputs").glob("*/result.json")}
    assert code == 0 and states(study()) == ["COMPLETE"] * 3
    assert not out.startswith("trial 1 ") and [attempts(trial) for trial in found] == [1, 2, 1]
    assert {str(_run(trial)) for trial in found} == runs and len(runs) == 3
    assert [trial.value for trial in found] == [
        read_result(_run(trial))["val/accuracy"] for trial in found
    ]


def test_a_trial_that_a_kill_left_half_asked_never_counts(command):
    command(*trials(1, LR))
    study().ask()  # without values
    assert command(*trials(2, LR))[0] == 0
    found = study()
    assert [trial.state.name for trial in found.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert states(found) == ["COMPLETE"] * 2


def test_whose_folder_it_is(command):
    here = [*trials(1, LR), "hydra.sweep.dir=mine"]
    assert command(*here)[0] == 0 and command(*trials(2, LR), "hydra.sweep.dir=mine")[0] == 0
    code, _, err = command(*here, "optimizer.momentum=0.5")
    assert code == 4 and "mine: holds the search search-optimizer.lr-" in err
    with lock_run_dir(Path("mine")):
        assert command(*here)[0] == 8
    Path("mine/study.log").write_text('{"op_code":99}\n[]\n')
    assert command(*here)[0] == 4
    Path("mine/study.log").unlink()
    Path("mine/study.log").mkdir()
    code, _, err = command(*here)
    assert code == 6 and err == "vggexp: error: mine/study.log: cannot be written: Is a directory\n"


@pytest.mark.slow
def test_several_trials_at_once(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    argv = trials(5, LR, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    ended = subprocess.run(
        [sys.executable, "-m", "vggexp", *argv], env=ENVIRONMENT, cwd=tmp_path, capture_output=True
    )
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    found = finished_trials(open_study(folder))
    assert ended.returncode == 0 and [trial.state.name for trial in found] == ["COMPLETE"] * 5
    assert (
        found[1].datetime_start < found[0].datetime_complete <= found[2].datetime_start
    )  # asked for in twos
    assert len({trial.params["optimizer.lr"] for trial in found}) == 5
