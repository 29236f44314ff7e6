"""Checks the command: its refusals, and its imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.permissions import without_root_rights
from vggexp.compare.__main__ import main
from vggexp.runs.sweeps import SweptRun, write_runs


def change_result(**values):
    path = Path("b/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "two different run directories or more are compared, given 0"),
        (["a"], 2, "given 1; see --help"),
        (["a", "./a"], 2, "given 2 times the same"),
        (["a", "b", "--nosuch"], 2, "unrecognized arguments: --nosuch"),
        (["a", "none", "nil\n"], 2, "none, nil\\n: no such directory"),
        (["a", "."], 4, ".: not the folder of a run, it has no config.yaml"),
    ],
)
def test_a_wrong_argument_is_one_line(argv, code, message, make_run, capfd):
    make_run("a")
    make_run("b", lr=0.2)
    check_refusal(argv, code, message, capfd)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda: change_result(state="interrupted"),
            "b is interrupted; only finished runs",
        ),
        (lambda: change_result(state="running"), "b is interrupted"),
        (lambda: Path("b/result.json").unlink(), "b is not started"),
        (
            lambda: change_result(**{"test/accuracy": None}),
            "b/result.json: has no test/accuracy",
        ),
        (
            lambda: change_result(**{"val/accuracy": "x"}),
            "val/accuracy is x, expected 0..1",
        ),
        (
            lambda: change_result(**{"test/accuracy": 0.7}),
            "not of this run: accuracy 0.7500, but",
        ),
        (lambda: Path("b/config.yaml").write_text("seed: x"), "seed=x: not a whole number"),
        (
            lambda: Path("b/predictions.npz").write_text("x"),
            "npz: File is not a zip file",
        ),
        (lambda: Path("b/env.json").write_text("{"), "b/env.json: not JSON: "),
    ],
)
def test_a_damaged_run_is_one_line(damage, message, make_run, capfd):
    make_run("a")
    make_run("b", lr=0.2)
    damage()
    check_refusal(["a", "b"], 4, message, capfd)


def check_refusal(argv, code, message, capfd):
    assert main(argv) == code
    out, error = capfd.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("vggexp: error: ")
    assert message in error


@pytest.mark.process
def test_trained_runs_are_compared_without_torch(command):
    for seed in (0, 1):
        for lr in (0.01, 0.05):
            argv = [*TINY, f"seed={seed}", f"optimizer.lr={lr}", f"run.name={lr}-{seed}"]
            assert command(*argv)[0] == 0
    code = (
        "import sys; from vggexp.compare.__main__ import main; "
        "print(main(sys.argv[1:]), 'torch' in sys.modules, 'hydra' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", code, *sorted(map(str, Path("outputs").iterdir()))]
    process = subprocess.run(argv, capture_output=True, text=True, env=environment)
    lines = process.stdout.splitlines()
    assert process.stderr == ""
    assert lines[-1] == "0 False False"
    assert "| configuration | optimizer.lr | 0.05  | B        |" in lines
    sentences = [line for line in lines if line.startswith("A (optimizer.lr=0.01) ")]
    assert [line for line in sentences if " B (optimizer.lr=0.05) " in line]


def test_a_closed_run_is_left_out_if_two_remain(make_run, capfd):
    for name in "abc":
        make_run(name, lr=ord(name))
    Path("b").chmod(0)
    with without_root_rights():
        assert main(["a", "b", "c"]) == 0
        out, error = capfd.readouterr()
        check_refusal(["a", "b"], 6, "b: cannot be read: Permission denied", capfd)
    Path("b").chmod(0o700)
    assert error == "vggexp: warning: b: cannot be read: Permission denied (left out)\n"
    assert "| B " in out
    assert "| C " not in out


@pytest.mark.parametrize("state", ["paused", "failed", "interrupted"])
def test_unfinished_runs_of_a_sweep_are_left_out(state, make_run, capfd):
    for name in "abc":
        make_run(name, lr=ord(name))
    Path("sweeps/s").mkdir(parents=True)
    write_runs(Path("sweeps/s"), [SweptRun(Path(name), []) for name in "abc"])
    change_result(state=state)
    assert main(["sweeps/s"]) == 0
    out, error = capfd.readouterr()
    assert error == ("vggexp: warning: sweeps/s: 1 of its 3 runs are not finished (left out)\n")
    assert "| B " in out
    assert "| C " not in out


def test_a_run_that_is_named_has_to_be_finished(make_run, capfd):
    make_run("a")
    make_run("b", lr=0.2)
    change_result(state="paused")
    check_refusal(["a", "b"], 4, "b is paused; only finished runs can be compared", capfd)


def test_what_stands_beside_the_runs_is_passed_over(make_run, capfd):
    make_run("a")
    make_run("b", lr=0.2)
    Path("sweeps").mkdir()
    for name in ("report.html", "report.csv", "report.md", "README.md"):
        Path(name).touch()
    assert main(sorted(os.listdir())) == 0
    assert capfd.readouterr().err == ""
    check_refusal(["a", "report.html"], 2, "given 1; see --help", capfd)
    check_refusal(["report.html"], 2, "report.html: not a directory", capfd)
