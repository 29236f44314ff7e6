"""Runs a part of every catalog of faults. `make faults` runs all cases."""

import subprocess
import sys

import pytest

from tools.faults.__main__ import CATALOGS
from tools.faults.catalog import replace_attribute


def test_a_fault_needs_an_attribute_that_exists():
    with pytest.raises(AttributeError):
        replace_attribute(subprocess, "nosuch", None)


@pytest.mark.debian
@pytest.mark.process
@pytest.mark.parametrize("catalog", CATALOGS)
def test_every_fault_is_survived(catalog):
    command = [sys.executable, "-m", "tools.faults", "--small", catalog]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
