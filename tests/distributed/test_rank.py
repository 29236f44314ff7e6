"""Reads the rank from the variables of torchrun and of srun."""

import pytest

from vggexp.distributed.rank import RankInfo, rank_info, slurm_env
from vggexp.errors import ConfigError

MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MEETING}
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
        (TORCHRUN, RankInfo(3, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, RankInfo()),
        (SBATCH, RankInfo()),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, RankInfo()),
        (SRUN, RankInfo(3, 4, 1)),
    ],
)
def test_rank_info(variables, expected, environment):
    environment(variables)
    assert rank_info() == expected


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): sets these variables, and no others of a launcher."""

    def set_variables(variables):
        for name in (*TORCHRUN, *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "", "WORLD_SIZE": ""}, "WORLD_SIZE=: must be a whole number of 1.."),
        ({"RANK": "0"}, "WORLD_SIZE is not set: must be a whole number"),
        ({"WORLD_SIZE": "2"}, "RANK is not set: must be a whole number of 0..1 "),
        ({**TORCHRUN, "RANK": "abc"}, "RANK=abc: must be a whole number of 0..3 "),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1: "),
        ({**TORCHRUN, "RANK": "1.0"}, "RANK=1.0: "),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4: "),
        ({**TORCHRUN, "RANK": "²"}, "RANK=²: "),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE=0: "),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK=x: must be a whole number of 0..3 "),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK=4: "),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR=: must be the host of rank 0 "),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT=70000: "),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_PORT is not set: "),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x: "),
        ({**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID=4: must be a whole number of 0..3 "),
        ({**SRUN, "SLURM_LOCALID": ""}, "SLURM_LOCALID=: "),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST=: must be a list of hosts "),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NODELIST is not set: "),
        ({**SRUN, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID=x: "),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "x"}, "SLURM_STEP_TASKS_PER_NODE=x: "),
        ({**SRUN, "SLURM_CPUS_PER_TASK": "x"}, "SLURM_CPUS_PER_TASK=x: "),
    ],
)
def test_a_variable_of_a_launcher_that_cannot_be_right(variables, message, environment):
    environment(variables)
    with pytest.raises(ConfigError) as error:
        rank_info()
    assert str(error.value).startswith(message)


def test_a_wrong_rank_ends_a_command_in_one_line(environment, command):
    environment({**TORCHRUN, "RANK": "abc"})
    code, out, err = command("data=synthetic")
    advice = "start the ranks with torchrun or srun; a single process needs none of"
    assert (code, out) == (2, "")
    assert err == (
        f"vggexp: error: RANK=abc: must be a whole number of 0..3 ({advice} RANK and WORLD_SIZE)\n"
    )


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
