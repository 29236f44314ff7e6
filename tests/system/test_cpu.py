"""The default number of threads of a run, and the memory that it may hold."""

import os

import pytest

from vggexp.system import cpu
from vggexp.system.cpu import available_bytes, default_threads, physical_cores


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, physical_cores()),
        ({"SLURM_CPUS_PER_TASK": "1"}, 1),
        ({"SLURM_CPUS_PER_TASK": "4096"}, physical_cores()),
        ({"SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "", "OMP_NUM_THREADS": "0"}, physical_cores()),
    ],
)
def test_the_launcher_sets_the_number_of_threads(monkeypatch, variables, threads):
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_threads() == threads


PAGE = os.sysconf("SC_PAGE_SIZE")
OWN_GROUP = {"v2": "0::/jobs/7\n", "v1": "9:name=systemd:/\n4:memory:/jobs/7\n0::/\n"}
V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(groups): 1 MiB is free, this process holds two pages, and control groups exist.

    A group is its folder, the names of its files, its limit and its usage.
    """
    for name, content in (
        ("MEMINFO", "MemTotal: 9 kB\nMemAvailable:    1024 kB\n"),
        ("STATM", "9 2 1 1 0 5 0\n"),
        ("OWN_CGROUPS", OWN_GROUP["v2"]),
    ):
        monkeypatch.setattr(cpu, name, tmp_path / name)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cpu, "CGROUPS", tmp_path / "groups")

    def set_group(folder, names, limit, usage):
        path = cpu.CGROUPS / folder
        path.mkdir(parents=True)
        for name, content in zip(names, (limit, usage), strict=True):
            (path / name).write_text(f"{content}\n")
        (path / "memory.stat").write_text("active_file 7\ninactive_file 100\n")

    return set_group


@pytest.mark.parametrize(
    ("group", "available"),
    [
        (None, 1 << 20),
        (("", V2, "max", 5000), 1 << 20),
        (("", V2, 8000, 5000), 3100),  # of a container, which sees its own group as the root
        (("jobs/7", V2, 8000, 5000), 3100),
        (("jobs", V2, 8000, 5000), 3100),  # a limit of the group around it
        (("other", V2, 8000, 5000), 1 << 20),
        (("", V2, 8000, 9000), 0),
    ],
)
def test_available_memory(machine, group, available):
    if group is not None:
        machine(*group)
    assert available_bytes() == available + 2 * PAGE


def test_available_memory_with_control_groups_of_version_1(machine):
    cpu.OWN_CGROUPS.write_text(OWN_GROUP["v1"])
    machine("memory/jobs/7", V1, 8000, 5000)
    assert available_bytes() == 3100 + 2 * PAGE


def test_a_system_that_does_not_report_its_memory(machine):
    cpu.MEMINFO.unlink()
    assert available_bytes() is None
