"""Runs a part of every catalog of faults. `make faults` runs all cases."""

import subprocess

import pytest

from tools.faults.__main__ import CATALOGS, one_of_each_kind
from tools.faults.catalog import replace_attribute


def test_a_fault_needs_an_attribute_that_exists():
    with pytest.raises(AttributeError):
        replace_attribute(subprocess, "nosuch", None)


def test_each_kind_has_its_middle_case():
    cases = [("full", 0), ("limit", 5), ("full", 10), ("full", 20), "seed=x", 3]
    assert one_of_each_kind(cases) == [("full", 10), ("limit", 5), "seed=x", 3]


@pytest.mark.debian
@pytest.mark.process
@pytest.mark.parametrize("catalog", CATALOGS)
@pytest.mark.parametrize(
    "part",
    ["--kinds", pytest.param("--small", marks=pytest.mark.slow)],  # the same kinds, more cases
)
def test_every_fault_is_survived(part, catalog, fork_command, tmp_path):
    process = fork_command(tmp_path, part, catalog, module="tools.faults.__main__")
    assert process.returncode == 0, process.stderr
