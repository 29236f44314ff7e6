"""A part of every catalogue; `make faults` runs them whole."""

import subprocess
import sys

import pytest

from tools.faults.__main__ import CATALOGUES


@pytest.mark.debian
def test_every_fault_is_survived():
    command = [
        sys.executable,
        "-m",
        "tools.faults",
        "--small",
    ]  # one process: to import torch takes longer than a case
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert end.stdout.count("\n") == len(CATALOGUES) + 2
