"""The default number of threads of a run."""

import pytest

from vggexp.system.cpu import default_threads, physical_cores


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
