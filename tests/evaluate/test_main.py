"""The command: the table that it prints, Ctrl-C, and what it refuses."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.evaluate.conftest import read_files
from tests.export.conftest import assert_refused
from vggexp.evaluate.__main__ import main
from vggexp.evaluate.views import MultiViewPredictor
from vggexp.runs.directory import write_result
from vggexp.runs.sweeps import SweptRun, write_runs

pytestmark = pytest.mark.process


def test_ctrl_c(command, capfd, monkeypatch):
    command(*TINY, "run.name=a")
    monkeypatch.setattr(
        MultiViewPredictor, "predict", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    # A process in the background may ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(["outputs/a"]) == 130
    signal.signal(signal.SIGINT, handler)
    assert capfd.readouterr().err == "vggexp: error: stopped by Ctrl-C: nothing was written\n"
    assert not Path("outputs/a/evaluations").exists()


def test_the_table(command, capfd):
    command(*TINY, "data.classes=25", "data.images=500", "run.name=many")
    command(*TINY, "data.classes=3", "run.name=few")
    assert main(["outputs/few", "--flip"]) == 0
    few = capfd.readouterr().out
    assert main(["outputs/many"]) == 0
    many = capfd.readouterr().out
    heading = "single at 32 px with mirror images: 19 test images seen 2 times, weights of step "
    assert heading in few
    assert "| class | images | accuracy | 0 " in few
    assert few.count("\n| ") == 2 + 4
    assert few.splitlines()[-1] == "written to outputs/few/evaluations/single-32-flip.json"
    assert "of 25 classes, the worst" in many
    assert "the most frequent mistakes" in many
    assert many.count("\n| ") == 2 + 21 + 21


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, runs that differ from it, and folders that are not finished runs."""
    from vggexp.__main__ import main as train

    folder = tmp_path_factory.mktemp("runs")
    outputs = folder / "outputs"
    digits = [override for override in TINY if not override.startswith("data")]
    overrides = {
        "a": TINY,
        "seeds": [*TINY, "seed=1"],
        "images": [*TINY, "data.images=160"],
        "digits": [*digits, "data=digits"],
        "whole": [*TINY, "data.val_fraction=0"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["vggexp"])
        for name, run in overrides.items():
            assert train([*run, "data.resize=32", "train.epochs=1", f"run.name={name}"]) == 0
    for name in ("stopped", "empty", "other"):
        shutil.copytree(outputs / "a", outputs / name)
    write_result(outputs / "stopped", "interrupted")
    shutil.rmtree(outputs / "empty/checkpoints")
    config = outputs / "other/config.yaml"
    config.write_text(config.read_text().replace("dropout: 0.5", "width_: 1"))
    (outputs / "none").mkdir()
    for name, members in {"alone": ["a"], "mixed": ["a", "stopped", "seeds"]}.items():
        sweep = outputs / "sweeps" / name
        sweep.mkdir(parents=True)
        write_runs(sweep, [SweptRun(outputs / member, []) for member in members])
    return folder


REFUSALS = [
    ([], 2, "the following arguments are required: RUN"),
    (["outputs/x"], 2, "outputs/x: no such directory"),
    (["outputs/a", "--with", "outputs/x"], 2, "outputs/x: no such directory"),
    (["outputs/a", "--mode", "sparse"], 2, "argument --mode: invalid choice: 'sparse'"),
    (
        ["outputs/a", "--scales", "32,x"],
        2,
        "argument --scales: 32,x: expected 1 to 32 sizes of 1..4096 pixels",
    ),
    (["outputs/a", "--scales", "0"], 2, "argument --scales: 0: expected"),
    (["outputs/a", "--shift", "-1"], 2, "argument --shift: -1: expected 1..100 pixels; see --help"),
    (
        ["outputs/a", "--shift", "32"],
        2,
        "--shift 32: must be below the 32 px that outputs/a sees",
    ),
    (["outputs/a", "--scales", "9,40", "--shift", "9"], 2, "below the 9 px that outputs/a sees"),
    (["outputs/a", "--scales", "40", "--shift", "32"], 2, "below the 32 px that outputs/a sees"),
    (
        ["outputs/a", "--mode", "dense", "--scales", "40,48", "--shift", "40"],
        2,
        "--shift 40: must be below the 40 px that outputs/a sees",
    ),
    (["outputs/a", "--scales", ""], 2, "argument --scales: : expected"),
    (["outputs/a", "--scales", ",".join(map(str, range(1, 40)))], 2, "expected 1 to 32 sizes"),
    (
        ["outputs/a", "--mode", "dense", "--scales", "40,31"],
        2,
        "--scales 31: too small for the dense network of",
    ),
    (["outputs/a", "--mode", "both", "--scales", "8"], 2, "was trained at 32 px; at least 32"),
    (["outputs/a", "--with", "outputs/../outputs/a"], 2, "given twice"),
    (["outputs/a", "--split", "train"], 2, "argument --split: invalid choice: 'train'"),
    (["outputs/whole", "--split", "val"], 2, "--split val: outputs/whole has no validation"),
    (["outputs/a", "--checkpoint", "x"], 2, "argument --checkpoint: invalid int value: 'x'"),
    (["outputs/a", "--checkpoint", "2"], 2, "--checkpoint 2: outputs/a/checkpoints has 3\n"),
    (
        ["outputs/empty", "--checkpoint", "3"],
        2,
        "--checkpoint 3: outputs/empty/checkpoints has none",
    ),
    (
        ["outputs/a", "--checkpoint", "3", "--with", "outputs/seeds"],
        2,
        "--checkpoint 3: a step of one run; leave out --with",
    ),
    (
        ["outputs/a", "--split", "val", "--with", "outputs/seeds"],
        4,
        "--with outputs/seeds: not the validation images of outputs/a (seed=1, not 0)",
    ),
    (
        ["outputs/a", "--split", "val", "--with", "outputs/images"],
        4,
        "not the validation images of outputs/a (other images of synthetic)",
    ),
    (["outputs"], 4, "outputs: not the folder of a run"),
    (["outputs/none"], 4, "outputs/none: not the folder of a run"),
    (
        ["outputs/stopped"],
        4,
        "outputs/stopped is interrupted; only finished and paused runs can be evaluated",
    ),
    (["outputs/a", "--with", "outputs/stopped"], 4, "outputs/stopped is interrupted"),
    (["outputs/stopped", "--with", "outputs/sweeps/mixed"], 4, "outputs/stopped is interrupted"),
    (["outputs/x", "--with", "outputs/sweeps/mixed"], 2, "outputs/x: no such directory"),
    (
        ["outputs/a", "--with", "outputs/sweeps/alone"],
        2,
        "--with outputs/sweeps/alone: has no other run that is finished",
    ),
    (
        ["outputs/a", "--with", "outputs/images"],
        4,
        "--with outputs/images: not the test images of outputs/a (another",
    ),
    (
        ["outputs/a", "--with", "outputs/digits"],
        4,
        "not the test images of outputs/a (digits, not synthetic)",
    ),
]


def test_refused_before_torch_is_imported(runs):
    before = read_files(runs)
    assert_refused("evaluate", REFUSALS, runs)
    assert read_files(runs) == before
    assert not list(runs.rglob("evaluations"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "holds no checkpoint of step"), ("other", "not a configuration of this version")],
)
def test_a_run_that_cannot_be_loaded(name, message, runs, monkeypatch, capfd):
    monkeypatch.chdir(runs)
    assert main([f"outputs/{name}"]) == 4
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_sweep_stands_for_its_runs_in_the_state_of_the_run(runs, monkeypatch, capfd):
    monkeypatch.chdir(runs)
    assert main(["outputs/a", "--with", "outputs/sweeps/mixed", "--json"]) == 0
    out, error = capfd.readouterr()
    assert [Path(run).resolve().name for run in json.loads(out)["with"]] == ["seeds"]
    warning = "outputs/sweeps/mixed: 1 of its 3 runs are not finished (left out)"
    assert error == f"vggexp: warning: {warning}\n"
    shutil.rmtree(runs / "outputs/a/evaluations")


def test_runs_that_differ_in_the_seed_are_averaged(runs, monkeypatch, evaluate):
    monkeypatch.chdir(runs)
    printed = evaluate("outputs/a", "--with", "outputs/seeds")
    assert printed["with"] == ["outputs/seeds"]
    shutil.rmtree(runs / "outputs/a/evaluations")
