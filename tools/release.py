"""The release as its users get it: built, installed from the wheel alone, and used from an empty folder.

    python -m tools.release [--python 3.12 ...]     the table of benchmarks/release.md; also `make release-check`

One fresh environment at a time, 6 GB each and gone afterwards: `pip` installs the wheel, every door answers, the
quickstart runs from an empty folder, and the unpacked sdist's own quick tests pass. Interpreters that are not at hand
are told and left out. Ten minutes for each on two cores.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CLASSIFIED = re.compile(r"Programming Language :: Python :: (3\.\d+)")
VERSIONS = [found[1] for entry in PROJECT["classifiers"] if (found := CLASSIFIED.fullmatch(entry))]
QUICK_TESTS = [
    f"tests/{name}.py"
    for name in (
        "config/test_compose",
        "config/test_identity",
        "test_shapes",
        "test_plan",
        "test_run",
    )
]
HEAD = (
    "Python",
    "torch",
    "install, s",
    "quickstart",
    "quickstart, s",
    "commands",
    "quick tests of the sdist",
)


def built(out: Path) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the sdist, by the build backend in an environment of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True, env=environment)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def interpreter(version: str) -> str | None:
    """Of this version (3.12), from PATH or pyenv; a shim without its version behind it does not count."""
    there = Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")
    for path in [which(f"python{version}"), *map(str, there)]:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def row(python: str, wheel: Path, sdist: Path) -> Iterator[str]:
    """The cells after the first, measured in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([python, "-m", "venv", str(home / "venv")], check=True)
        pinned = ["-c", str(ROOT / "constraints.txt")]
        seconds = run(
            home, "pip", "install", "-q", *pinned, str(wheel), "pytest", "hypothesis", "torchvision"
        )[1]
        yield run(home, "python", "-c", "import torch; print(torch.__version__)")[0].strip()
        yield f"{seconds:.0f}"
        yield from used(home)
        yield tested(home, sdist)


def used(home: Path) -> Iterator[str]:
    """Quickstart from an empty folder, then every door: its help, and its work where it takes a finished run."""
    text, seconds = run(home, "vggexp", "experiment=quickstart")
    yield f"{re.search(r'test accuracy ([0-9.]+)', text)[1]}"  # type: ignore[index]
    yield f"{seconds:.0f}"
    (made,) = [
        str(path.parent.relative_to(home / "empty"))
        for path in home.glob("empty/outputs/*/result.json")
    ]
    for name in PROJECT["scripts"]:
        assert "vggexp" in run(home, name, "--help")[0]
    for door in ("evaluate", "verify", "report"):
        run(home, f"vggexp-{door}", made)
    assert (
        json.loads(run(home, "vggexp-plan", "arch=vgg19", "data.resize=224", "--json")[0])[
            "weight_layers"
        ]
        == 19
    )
    assert run(home, "vggexp", "--version")[0].split()[1] == wheel_version()
    yield f"{len(PROJECT['scripts'])} of {len(PROJECT['scripts'])}"


def wheel_version() -> str:
    return re.search(r'__version__ = "(.+)"', (ROOT / "vggexp/__init__.py").read_text("utf-8"))[1]  # type: ignore[index]


def tested(home: Path, sdist: Path) -> str:
    """Its last line, as `181 passed in 20 s`."""
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
    (unpacked,) = home.glob("vggexp-*/")
    return run(home, "python", "-m", "pytest", "-m", "not slow", *QUICK_TESTS, at=unpacked)[
        0
    ].splitlines()[-1]


def run(home: Path, name: str, *words: str, at: Path | None = None) -> tuple[str, float]:
    """What a command of the environment printed, and its seconds. Raises RuntimeError with the end of both outputs."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "VGGEXP_CONF_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PATH"] = f"{home / 'venv/bin'}:{environment['PATH']}"
    folder = at or home / "empty"
    folder.mkdir(exist_ok=True)
    command = [str(home / "venv/bin" / name), *words]
    begin = time.perf_counter()
    end = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if end.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {end.returncode}\n{end.stdout[-2000:]}\n{end.stderr[-2000:]}"
        )
    return end.stdout, time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.release", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=VERSIONS, metavar="VERSION", help="as 3.12")
    wanted = parser.parse_args(argv).python
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = built(Path(folder))
        print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
        for version in wanted:
            python = interpreter(version)
            cells = (
                list(row(python, wheel, sdist))
                if python
                else ["not at hand", *["-"] * (len(HEAD) - 2)]
            )
            print("| " + " | ".join([version, *cells]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
