"""Reads the rank from the variables of torchrun and of srun."""

import pytest

from vggexp.distributed.rank import RankInfo, rank_info, slurm_env

SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[07-08]",
}
SBATCH = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}  # a batch script, not a task of srun


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, RankInfo()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, RankInfo(3, 4, 1)),
        (SBATCH, RankInfo()),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, RankInfo()),
        (SRUN, RankInfo(3, 4, 1)),
    ],
)
def test_rank_info(variables, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_info() == expected


@pytest.mark.parametrize(
    ("nodes", "tasks", "cpus", "host", "threads"),
    [
        ("a1", "2", {"SLURM_CPUS_PER_TASK": "6"}, "a1", "6"),
        ("gpu[003-005,7],other", "4(x3),2", {"SLURM_CPUS_PER_TASK": "8"}, "gpu003", "8"),
        ("a-1,b[2-3]", "1000(x3)", {}, "a-1", "1"),
    ],
)
def test_host_and_threads_of_a_slurm_step(nodes, tasks, cpus, host, threads):
    step = {**SRUN, "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks, **cpus}
    variables = slurm_env(step)
    assert variables["MASTER_ADDR"] == host
    assert variables["OMP_NUM_THREADS"] == threads


def test_two_steps_of_a_slurm_job_have_different_ports():
    ports = set()
    for step in ("0", "1"):
        variables = slurm_env({**SRUN, "SLURM_JOB_ID": "12", "SLURM_STEP_ID": step})
        ports.add(variables["MASTER_PORT"])
    assert len(ports) == 2
