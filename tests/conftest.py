"""What several test files need: a command run in this process, and a small set-up that trains in a second."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

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

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in `make test &` of a script; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests skip without the data or the browser, unless VGGEXP_REQUIRE_DATA is set, where they fail instead."""
    there = {"debian": FASHION.is_dir(), "browser": shutil.which("chromium") is not None}
    packages = {"debian": "dataset-fashion-mnist", "browser": "chromium"}
    missing = (
        []
        if os.environ.get("VGGEXP_REQUIRE_DATA")
        else [marker for marker in there if not there[marker]]
    )
    for item in items:
        if item.get_closest_marker("cuda") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        for marker in missing:
            if item.get_closest_marker(marker):
                item.add_marker(
                    pytest.mark.skip(reason=f"Debian's package {packages[marker]} is not installed")
                )


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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


def write_pictures(
    root: Path, counts: dict[str, int], shape: Callable[[int], tuple[int, int]], kind: str
) -> None:
    """A folder of noise in two classes, so many of each in each part; shape: height and width of a picture."""
    import numpy
    from PIL import Image

    draw = numpy.random.default_rng(0)
    for part, count in counts.items():
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (*shape(index), 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.{kind}")


def result(name: str) -> dict:
    return json.loads((Path("outputs") / name / "result.json").read_text())
