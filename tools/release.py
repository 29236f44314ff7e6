"""Tests the release as users get it: built, installed from the wheel alone, run in an empty folder.

    python -m tools.release [--python 3.12 ...]     the table of benchmarks/release.md
                                                    also `make release-check`

Works in one fresh environment at a time, of 6 GB, which is removed afterwards. `pip` installs the
wheel, every command runs, the quickstart runs in an empty folder, and the quick tests of the
unpacked sdist pass. A Python version that is not installed is reported and left out. Ten minutes
for each version on two cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSIONS = re.findall(
    r"^Programming Language :: Python :: (3\.\d+)$",
    "\n".join(PROJECT["classifiers"]),
    re.MULTILINE,
)
QUICK_TESTS = [
    "tests/config/test_compose.py",
    "tests/config/test_run_id.py",
    "tests/models/test_shapes.py",
    "tests/test_plan.py",
    "tests/runner/test_run.py",
]
COLUMNS = (
    "Python",
    "torch",
    "install, s",
    "quickstart",
    "quickstart, s",
    "commands",
    "quick tests of the sdist",
)
HIDDEN_VARIABLES = ("PYTHONPATH", "VIRTUAL_ENV", "VGGEXP_CONF_PATH")


class Output(NamedTuple):
    text: str  # stdout
    seconds: float


def build(out: Path) -> tuple[Path, Path]:
    """Builds the sdist, and the wheel from the sdist. Returns wheel and sdist.

    The build backend runs in an environment of its own.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


def find_interpreter(version: str) -> str | None:
    """Returns a Python of this version (3.12) from PATH or pyenv.

    A shim of pyenv without an installed version is no interpreter.
    """
    paths = [which(f"python{version}")]
    paths += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for path in paths:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def check_release(python: str, wheel: Path, sdist: Path) -> list[str]:
    """Returns the cells after the first, measured in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([python, "-m", "venv", str(home / "venv")], check=True)
        constraints = ["-c", str(ROOT / "constraints.txt")]
        packages = [str(wheel), "pytest", "hypothesis", "torchvision"]
        install = run(home, "pip", "install", "-q", *constraints, *packages)
        torch = run(home, "python", "-c", "import torch; print(torch.__version__)")
        quickstart = run(home, "vggexp", "experiment=quickstart")
        accuracy = re.search(r"test accuracy ([0-9.]+)", quickstart.text)
        assert accuracy is not None, quickstart.text
        return [
            torch.text.strip(),
            f"{install.seconds:.0f}",
            accuracy[1],
            f"{quickstart.seconds:.0f}",
            check_commands(home),
            run_quick_tests(home, sdist),
        ]


def check_commands(home: Path) -> str:
    """Runs every command with --help, and commands that take a finished run on the quickstart."""
    (result,) = home.glob("empty/outputs/*/result.json")
    folder = str(result.parent.relative_to(home / "empty"))
    scripts = PROJECT["scripts"]
    for name in scripts:
        assert "vggexp" in run(home, name, "--help").text
    for command in ("evaluate", "verify", "report"):
        run(home, f"vggexp-{command}", folder)
    plan = run(home, "vggexp-plan", "arch=vgg19", "data.resize=224", "--json")
    assert json.loads(plan.text)["weight_layers"] == 19
    assert run(home, "vggexp", "--version").text.split()[1] == source_version()
    return f"{len(scripts)} of {len(scripts)}"


def source_version() -> str:
    source = (ROOT / "vggexp/__init__.py").read_text("utf-8")
    match = re.search(r'__version__ = "(.+)"', source)
    assert match is not None
    return match[1]


def unpack(path: Path, folder: Path) -> None:
    """Unpacks an archive of this project. Python before 3.11.4 has no filters."""
    with tarfile.open(path) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)


def run_quick_tests(home: Path, sdist: Path) -> str:
    """Returns the last line of the tests, for example `181 passed in 20 s`."""
    unpack(sdist, home)
    (unpacked,) = home.glob("vggexp-*/")
    tests = run(home, "python", "-m", "pytest", "-m", "not slow", *QUICK_TESTS, folder=unpacked)
    return tests.text.splitlines()[-1]


def run(home: Path, name: str, *argv: str, folder: Path | None = None) -> Output:
    """Runs a command of the environment, in an empty folder unless another folder is given.

    Raises:
        RuntimeError: the command failed; the message has the end of both outputs.
    """
    environment = {key: value for key, value in os.environ.items() if key not in HIDDEN_VARIABLES}
    environment["PATH"] = f"{home / 'venv/bin'}:{environment['PATH']}"
    folder = folder or home / "empty"
    folder.mkdir(exist_ok=True)
    command = [str(home / "venv/bin" / name), *argv]
    start = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {ended.returncode}\n"
            f"{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
        )
    return Output(ended.stdout, time.perf_counter() - start)


def print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.release", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--python", nargs="+", default=VERSIONS, metavar="VERSION", help="versions, such as 3.12"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = build(Path(folder))
        print_row(COLUMNS)
        print("|---" * len(COLUMNS) + "|", flush=True)
        for version in arguments.python:
            python = find_interpreter(version)
            if python is None:
                cells = ["not at hand"] + ["-"] * (len(COLUMNS) - 2)
            else:
                cells = check_release(python, wheel, sdist)
            print_row([version, *cells])
    return 0


if __name__ == "__main__":
    sys.exit(main())
