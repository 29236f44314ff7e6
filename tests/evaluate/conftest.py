"""The command as a function, and helpers for its results."""

import json

import pytest

from vggexp.evaluate.__main__ import main

COLOR = ["data.channels=3", "data.classes=4"]


@pytest.fixture
def evaluate(capfd):
    """evaluate("outputs/a", ...) -> the object that --json prints."""

    def run(*argv):
        assert main([*argv, "--json"]) == 0
        out, error = capfd.readouterr()
        assert error == ""
        return json.loads(out)

    return run


def metrics(printed):
    return {key: value for key, value in printed.items() if key.startswith("test/")}


def read_files(folder):
    """Returns {path: content} of a folder without evaluations."""
    contents = {}
    for path in folder.rglob("*"):
        if path.is_file() and "evaluations" not in path.parts:
            contents[path] = path.read_bytes()
    return contents
