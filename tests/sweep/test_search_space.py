"""Tests the axes, settings and refusals of a search, all of them without Optuna."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.sweep.expand import compose_outline, expand_sweep
from vggexp.sweep.search_space import SearchAxis

SEARCH = ["-m", "hydra/sweeper=optuna", *TINY, "train.epochs=1"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
LR = "optimizer.lr=tag(log,interval(0.0001,0.1))"


def only_axis(text: str) -> SearchAxis:
    command = parse_command([*SEARCH, text])
    (axis,) = expand_sweep(command, compose_outline(command)).axes.values()
    return axis


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=interval(1,2)", SearchAxis(low=1.0, high=2.0)),
        (LR, SearchAxis(low=0.0001, high=0.1, log=True)),
        ("seed=int(interval(1,5))", SearchAxis(low=1, high=5)),
        ("seed=tag(log,int(interval(1,64)))", SearchAxis(low=1, high=64, log=True)),
        ("seed=range(1,10,3)", SearchAxis(low=1, high=7, step=3)),
        ("seed=range(10,1,-3)", SearchAxis(low=4, high=10, step=3)),
        ("arch.norm=none,batch", SearchAxis(("none", "batch"))),
        (
            "arch.blocks=choice([[1,64],[1,64]],[[2,16]])",
            SearchAxis(("[[1,64],[1,64]]", "[[2,16]]")),
        ),
        ("arch=glob(vgg11*)", SearchAxis(("vgg11", "vgg11_bn", "vgg11_lrn"))),
        ("seed=shuffle(3,1,2)", SearchAxis(("1", "2", "3"))),
    ],
)
def test_the_axes_of_a_search(text, expected):
    assert only_axis(text) == expected


def test_a_fraction_of_a_range_has_the_text_of_a_grid():
    axis = only_axis("arch.dropout=range(0.1,0.5,0.1)")
    texts = [axis.text(value) for value in (0.1, 0.1 + 0.1 + 0.1, 0.4)]
    assert texts == [axis.values[0], *axis.values[2:]]
    assert [float(value) for value in axis.values] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-15)


@pytest.mark.parametrize(
    ("overrides", "parallel", "jobs_at_a_time"),
    [
        ([], 2, 2),
        (["hydra.launcher.jobs=3"], 3, 3),
        (["hydra.launcher.jobs=3", "hydra.sweeper.parallel=5"], 5, 3),
        (["sweep.halving=2", "hydra.launcher.jobs=3"], 4, 3),
        (["sweep.halving=100", "train.epochs=100"], 4096, 2),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 3, 3),
        (["hydra/launcher=submitit_local"], 1, 1),
    ],
)
def test_a_search_has_as_many_trials_at_once_as_the_launcher_has_jobs(
    overrides, parallel, jobs_at_a_time, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    command = parse_command([*SEARCH, LR, "train.epochs=2", "device=cpu", *overrides])
    plan = expand_sweep(command, compose_outline(command))
    assert plan.settings.parallel == parallel
    assert plan.jobs_at_a_time == jobs_at_a_time


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("hydra.sweeper.n_trials=0 seed=1,2", "hydra.sweeper.n_trials=0: must be 1..1000000"),
        (
            "hydra.sweeper.n_trials=1e2 seed=1,2",
            "hydra.sweeper.n_trials=1e2: not a whole number; write 100",
        ),
        ("hydra.sweeper.sampler=foo seed=1,2", "hydra.sweeper.sampler=foo: allowed tpe, random"),
        (
            "hydra.sweeper.parallel=0 hydra.sweeper.seed=-1 seed=1,2",
            "hydra.sweeper.seed=-1: must be 0..9223372036854775807; "
            "hydra.sweeper.parallel=0: must be 1..4096 or null",
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
            "optimizer.lr=interval(1,0.1): its start is not below its end",
        ),
        (
            "optimizer.lr=tag(lgo,interval(0.1,1))",
            "optimizer.lr=tag(lgo,interval(0.1,1)): tag lgo: unknown; allowed log",
        ),
        (
            "seed=tag(log,range(1,9))",
            "seed=tag(log,range(1,9)): tag log: belongs to an interval; write tag(log,int...",
        ),
        (
            "run.name=x seed=1,2",
            "run.name=x: two jobs would share this folder (seed=1, seed=2); leave run...",
        ),
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
def test_a_search_is_refused_in_one_line(command, tmp_path, overrides, expected):
    code, out, err = command(*SEARCH, *shlex.split(overrides))
    line = err.removeprefix("vggexp: error: ")
    assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []
    if expected.endswith("..."):
        assert line.startswith(expected.removesuffix("..."))
    else:
        assert line == f"{expected}\n"


def test_a_search_without_optuna_names_the_extra(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    advice = "hydra/sweeper=optuna: Optuna is not installed; pip install 'vggexp[search]'"
    assert command(*SEARCH, LR) == (2, "", f"vggexp: error: {advice}\n")


@pytest.mark.process
def test_refusing_imports_neither_torch_nor_optuna(tmp_path):
    argv = [*SEARCH, "hydra.sweeper.n_trials=0", LR]
    code = f"import sys; from vggexp.__main__ import main; main({argv})\n"
    code += "print({'torch', 'optuna'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert process.stdout == "set()\n"
    assert process.stderr.count("\n") == 1
