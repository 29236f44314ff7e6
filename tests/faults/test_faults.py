"""A part of every catalogue; `make faults` runs them whole."""

import subprocess
import sys

import pytest

from tests.faults.catalogues import CATALOGUES


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUES)
def test_every_fault_is_survived(name):
    command = [sys.executable, "-m", "tests.faults", "--small", name]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
