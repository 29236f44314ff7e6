"""What several test files need: a command run in this process, and a small set-up that trains in a second."""

import json
import os
from pathlib import Path

import pytest

FASHION = Path("/usr/share/datasets/fashion-mnist")
TINY = ["data=synthetic", "data.images=96", "data.batch_size=32", "data.size=32", "arch.hidden=[16]", "arch.width=0.05"]
TINY += ["train.epochs=2", "device.threads=1"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `debian` skip without the data, unless VGGEXP_REQUIRE_DATA is set, where they fail instead."""
    if FASHION.is_dir() or os.environ.get("VGGEXP_REQUIRE_DATA"):
        return
    for item in items:
        if item.get_closest_marker("debian"):
            item.add_marker(pytest.mark.skip(reason="Debian's package dataset-fashion-mnist is not installed"))


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


def result(name: str) -> dict:
    return json.loads((Path("outputs") / name / "result.json").read_text())
