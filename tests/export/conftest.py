"""A finished run with exported files, and commands that run in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import TINY
from vggexp.export.__main__ import main

ROOT = Path(__file__).parents[2]
SMALL = [*TINY, "data.size=20", "data.resize=32", "device.precision=fp32"]
FORMATS = {"a.pt2": ("torch", False), "a-preprocess.onnx": ("onnx", True)}


@pytest.fixture(scope="session")
def train_run(tmp_path_factory):
    """train_run(name, "key=value", ...): trains a run below `train_run.folder`."""
    from vggexp.__main__ import main as train

    folder = tmp_path_factory.mktemp("runs")

    def run(name, *overrides):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.argv", ["vggexp"])
            assert train([*overrides, f"run.name={name}"]) == 0
        return folder / "outputs" / name

    run.folder = folder
    return run


@pytest.fixture(scope="session")
def exports(train_run):
    """A run with batch norm and two exported files: (run directory, {file name: ExportResult})."""
    from vggexp.export.writers import export_run
    from vggexp.runs.predictions import read

    run = train_run("a", *SMALL, "data.channels=3", "arch.norm=batch")
    results = {}
    for name, (file_format, preprocess) in FORMATS.items():
        path = run / "exports" / name
        results[name] = export_run(run, file_format, preprocess, path, read(run))
    return run, results


@pytest.fixture
def export(capfd):
    """export("--format", "torch", ...) -> (exit code, stdout, stderr)."""

    def run(*argv):
        capfd.readouterr()  # discards what training printed
        code = main([str(argument) for argument in argv])
        out, error = capfd.readouterr()
        return code, out, error

    return run


class CommandResult(NamedTuple):
    code: int
    error: str
    torch_imported: bool


COMMANDS = """
import contextlib, io, json, sys
from importlib.util import find_spec
import vggexp.{command}.__main__ as command
results = []
for argv in json.loads(sys.argv[1]):
    if "--without" in argv:
        argv.remove("--without")
        command.find_spec = lambda name: None if name == "{missing}" else find_spec(name)
    else:
        command.find_spec = find_spec
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = command.main(argv)
    results.append([code, error.getvalue(), "torch" in sys.modules])
print(json.dumps(results))
"""


def run_commands(command, commands, folder, missing=""):
    """Runs a command with each of the argument lists, all in one new process.

    Args:
        missing: a package that is hidden from commands with --without.
    """
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            COMMANDS.format(command=command, missing=missing),
            json.dumps(commands),
        ],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return [CommandResult(*result) for result in json.loads(ended.stdout)]


def assert_refused(command, refusals, folder, missing=""):
    """Asserts exit code and one-line error of each (arguments, code, text), without torch."""
    results = run_commands(command, [case[0] for case in refusals], folder, missing)
    for (argv, code, text), result in zip(refusals, results, strict=True):
        assert result.code == code, argv
        assert result.error.startswith("vggexp: error: "), argv
        assert result.error.count("\n") == 1, argv
        assert text in result.error, argv
        assert not result.torch_imported, argv
