"""Shared by the tests: a command run in this process, a set-up that trains in a second, images."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FASHION = Path("/usr/share/datasets/fashion-mnist")
TINY = [
    "data=synthetic",
    "data.images=96",
    "data.batch_size=32",
    "data.size=32",
    "arch.hidden=[16]",
    "arch.width=0.05",
]
TINY += ["train.epochs=2", "device.threads=1"]

# As many threads as cores for each process of `pytest -n` would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# SIGINT is ignored under `make test &` of a script, and commands would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests without data or browser; with VGGEXP_REQUIRE_DATA set they fail instead."""
    reasons = {}
    if not os.environ.get("VGGEXP_REQUIRE_DATA"):
        if not FASHION.is_dir():
            reasons["debian"] = "Debian's package dataset-fashion-mnist is not installed"
        if shutil.which("chromium") is None:
            reasons["browser"] = "Debian's package chromium is not installed"
    if any(item.get_closest_marker("cuda") for item in items) and not _has_gpu():
        reasons["cuda"] = "no CUDA device"
    # The longest tests begin first, so that no process waits for one of them at the end.
    items.sort(key=lambda item: "test_faults" not in item.nodeid)
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Excludes what exists now from garbage collection, also in the processes that tests fork."""
    gc.freeze()


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory) -> None:
    """Gives the tests and their processes a cache folder of their own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """command("key=value", ...) -> (exit code, stdout, stderr), run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        from vggexp.__main__ import main

        monkeypatch.setattr("sys.argv", ["vggexp"])
        code = main(list(argv))
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def fork_command(user_cache):
    """fork_command(folder, argument, ..., VARIABLE=value) runs `python -m vggexp` in a folder.

    It returns what subprocess.run does. The command is a fork of a process that has imported torch
    and has run no operation of torch, which a new Python would take seconds for.
    """
    pipe = subprocess.PIPE
    server = [sys.executable, "-m", "tools.faults.server"]
    with subprocess.Popen(server, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:

        def run(folder, *argv, module="vggexp.__main__", **variables):
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
            request = [str(folder), module, argv, environment]
            print(json.dumps(request), file=process.stdin, flush=True)
            code, out, err, _ = json.loads(process.stdout.readline())
            return subprocess.CompletedProcess(argv, code, out, err)

        yield run


def write_images(
    root: Path, counts: dict[str, int], shape: Callable[[int], tuple[int, int]], kind: str
) -> None:
    """Writes a folder of noise images in two classes.

    Args:
        counts: Images of each class, by part (train, test).
        shape: Returns height and width of an image by its index.
        kind: Suffix of the files without the dot, such as png.
    """
    import numpy
    from PIL import Image

    generator = numpy.random.default_rng(0)
    for part, count in counts.items():
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (*shape(index), 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.{kind}")


def result(name: str) -> dict:
    return json.loads((Path("outputs") / name / "result.json").read_text())


def write_epochs(config, accuracies: Sequence[float | None], state: str = "paused") -> None:
    """Writes the directory of a run that has a validation accuracy for each epoch."""
    from vggexp.config.keys import to_plain
    from vggexp.runs import directory, jsonl, records

    folder = records.run_dir(config)
    rows = [{"epoch": epoch, "val/accuracy": x} for epoch, x in enumerate(accuracies, 1)]
    folder.mkdir(parents=True)
    directory.write_metadata(folder, to_plain(config), [], {})
    jsonl.rewrite(folder / "metrics.jsonl", rows)
    directory.write_result(folder, state)


def full_pipe() -> tuple[int, int]:
    """Returns the ends of a pipe that is full: a process that writes waits until another reads."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    return read_end, write_end
