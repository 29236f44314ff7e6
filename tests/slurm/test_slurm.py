"""Sweeps and single runs on a real Slurm: whatever ends a job, its run goes on and ends with the same bits."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import WARNS, Cluster, cluster

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = [
    "data=synthetic",
    "data.images=96",
    "data.batch_size=32",
    "data.size=32",
    "arch.hidden=[16]",
    "arch.width=0.05",
]
RUN += ["device=cpu", "device.threads=1", "train.epochs=30"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30"]
RESTS = "train.rest_minutes=0.01"  # half of a minute in all, in which a test can do something
SWEEP = ["-m", *RUN, *SLURM, "seed=0,1", RESTS]
OTHER = [
    "sbatch",
    "--partition=high",
    "--ntasks=2",
    "--wait",
    "--output=/dev/null",
    "--wrap=sleep 1",
]


class Here:
    """A cluster with a folder of runs."""

    def __init__(self, slurm: Cluster, folder: Path):
        self.slurm, self.folder = slurm, folder

    @contextlib.contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen]:
        """A command of vggexp, ended at the latest with the block."""
        command = [sys.executable, "-m", "vggexp", *argv]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.slurm.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def command(
        self, *argv: str, meanwhile: Callable[[], object] = lambda: None
    ) -> tuple[int, str]:
        """Exit code and output. meanwhile: what is done once every job trains."""
        with self.started(*argv) as process:
            meanwhile()
            output, _ = process.communicate(timeout=300)
            return process.returncode, output

    def training(self, jobs: int = 2) -> None:
        """Waits until so many runs have finished an epoch."""
        self.slurm.until(
            lambda: (
                sum(
                    bool(path.stat().st_size)
                    for path in self.folder.glob("outputs/*/metrics.jsonl")
                )
                == jobs
            )
        )

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("outputs/*/result.json"))

    def results(self) -> dict[int, dict]:
        """result.json by seed."""
        seeds = [
            int((run.name.partition("-seed")[2] or "0").partition("-")[0]) for run in self.runs()
        ]
        return {
            seed: json.loads((run / "result.json").read_text())
            for seed, run in zip(seeds, self.runs(), strict=True)
        }

    def weights(self) -> dict[int, str]:
        return {seed: result.get("weights_sha256") for seed, result in self.results().items()}

    def count(self, words: str) -> int:
        """How often the runs said it."""
        return sum((run / "run.log").read_text().count(words) for run in self.runs())

    def jobs(self) -> list[str]:
        """The numbers of the jobs that run."""
        return self.slurm.told("squeue", "-h", "--array", "-t", "running", "-o", "%i").split()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of both runs, without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = [sys.executable, "-m", "vggexp", "-m", *RUN, "seed=0,1", "hydra.launcher.jobs=2"]
    subprocess.run(argv, cwd=folder, env=variables(), check=True, capture_output=True)
    return Here(None, folder).weights()


def variables() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def slurm(tmp_path, request, monkeypatch):
    assert shutil.which("slurmctld"), (
        "slurmctld is not installed: apt-get install --no-install-recommends slurm-wlm"
    )
    monkeypatch.setattr(os, "environ", variables())
    more = getattr(request, "param", WARNS)
    with cluster(tmp_path / "slurm", more=more) as one:
        (folder := tmp_path / "work").mkdir()
        yield Here(one, folder)


def test_a_sweep_is_an_array_and_runs_what_is_missing(slurm, undisturbed):
    argv = ["-m", *RUN, *SLURM, "train.epochs=2"]
    code, output = slurm.command(*argv, "optimizer.lr=0.01,0.02,100")
    assert code == 7 and "1 of 3 jobs did not finish" in output and "not finite" in output
    slurm.slurm.until(lambda: not slurm.slurm.told("squeue", "-h"))
    jobs = slurm.slurm.told("squeue", "-h", "-t", "all", "-o", "%F %T").split("\n")
    assert (
        len(jobs) == 3 and len(set(jobs)) == 1 and jobs[0].endswith("COMPLETED")
    )  # the failed one as well
    code, output = slurm.command(*argv, "optimizer.lr=0.01,0.02,0.03")
    assert code == 0 and "already finished: 2 of 3 jobs" in output
    assert len(slurm.slurm.told("squeue", "-h", "-t", "all", "-o", "%F").split()) == 4


@pytest.mark.parametrize(
    "slurm", [WARNS, ""], indirect=True, ids=["warned by USR2", "warned by TERM"]
)
def test_preempted_jobs_return_and_end_the_same(slurm, undisturbed):
    def preempt() -> None:
        slurm.training()
        slurm.slurm.told(*OTHER)

    code, output = slurm.command(*SWEEP, meanwhile=preempt)
    assert (code, slurm.weights()) == (0, undisturbed), output
    assert slurm.count("continued after step") == 2 and slurm.count("test accuracy") == 2


def test_time_that_is_up(slurm):
    """The pause between two epochs is longer than a job may be."""
    short = [*SWEEP, "train.epochs=2"]
    times = [
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=30",
        "train.rest_minutes=10",
    ]
    code, output = slurm.command(*short, *times)
    assert code == 0 and slurm.count("continued after step 3: 1 epochs") == 2, output
    ended = slurm.weights()
    assert slurm.command("-m", *RUN, "seed=0,1", "train.epochs=2", "run.root=alone/outputs")[0] == 0
    alone = Here(slurm.slurm, slurm.folder / "alone")
    assert ended == alone.weights()


def test_a_job_that_may_not_return_is_told(slurm, undisturbed):
    """submitit's own defaults: no time-out, and with ten minutes or less any signal is one."""
    plain = [*SWEEP, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]

    def warn() -> None:
        slurm.training()
        slurm.slurm.told("scancel", "--signal=USR2", slurm.jobs()[0])

    code, output = slurm.command(*plain, meanwhile=warn)
    assert (
        code == 7 and output.count("left no result (FAILED)") == 1 and "Traceback" not in output
    ), output
    logs = [path.read_text() for path in slurm.folder.glob("outputs/sweeps/*/.submitit/*/*.err")]
    assert (
        sum(
            "vggexp: SIGUSR2: Job not requeued because: timed-out too many times." in log
            for log in logs
        )
        == 1
    )
    assert slurm.command(*plain)[0] == 0 and slurm.weights() == undisturbed


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_job_that_is_ended_is_told_and_takes_no_other_along(slurm, undisturbed, how):
    """Although there is no sacct. Cancelled, it saves; killed, it goes on from its last checkpoint."""

    def end() -> None:
        slurm.training()
        if how == "cancelled":
            slurm.slurm.told("scancel", slurm.jobs()[0])
        else:
            os.kill(int((slurm.runs()[0] / ".lock").read_text().split()[-1]), signal.SIGKILL)

    code, output = slurm.command(*SWEEP, meanwhile=end)
    states = sorted(result["state"] for result in slurm.results().values())
    assert code == 7 and output.count("left no result") == 1 and "Traceback" not in output, output
    assert states == ["finished", "interrupted" if how == "cancelled" else "running"]
    code, output = slurm.command(*SWEEP)
    assert code == 0 and "already finished: 1 of 2 jobs" in output
    assert slurm.weights() == undisturbed and slurm.count("continued after step") == 1


@pytest.mark.parametrize("how", ["down", "gone"])
def test_a_node_that_fails(slurm, undisturbed, how):
    def fail() -> None:
        slurm.training()
        if how == "down":
            slurm.slurm.told(
                "scontrol", "update", f"nodename={slurm.slurm.host}", "state=down", "reason=test"
            )
            slurm.slurm.until(lambda: not slurm.jobs())
            slurm.slurm.told("scontrol", "update", f"nodename={slurm.slurm.host}", "state=resume")
        else:
            slurm.slurm.lose_node()
            slurm.slurm.until(lambda: not slurm.jobs())
            slurm.slurm.start("slurmd")

    code, output = slurm.command(*SWEEP, meanwhile=fail)
    assert (code, slurm.weights()) == (0, undisturbed), output
    assert slurm.count("continued after step") == 2


def test_a_launcher_that_is_gone(slurm, undisturbed):
    """Its jobs go on; the same command waits for them, and trains nothing twice."""
    with slurm.started(*SWEEP):
        slurm.training()
    code, output = slurm.command(*SWEEP)
    assert (code, slurm.weights()) == (0, undisturbed), output
    assert slurm.count("continued after step") == 0 and slurm.count("test accuracy") == 2


def test_what_slurm_refuses_is_one_line(slurm):
    for wrong, told in [
        ("partition=nope", "invalid partition specified: nope"),
        ("gpus_per_node=1", "Invalid generic"),
    ]:
        code, output = slurm.command(*SWEEP, f"hydra.launcher.{wrong}")
        assert code == 2 and f"vggexp: error: hydra.launcher: sbatch: error: {told}" in output
        assert "Traceback" not in output and not slurm.runs()


def batch(slurm: Here, file: str, *argv: str) -> str:
    """Submits one of the files for users; the number of the job."""
    options = [word for word in argv if word.startswith("--")]
    words = [word for word in argv if word not in options]
    command = [
        "sbatch",
        "--parsable",
        "--cpus-per-task=1",
        *options,
        str(ROOT / "docs" / "slurm" / file),
        *words,
    ]
    ended = subprocess.run(
        command, cwd=slurm.folder, env=slurm.slurm.variables, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def done(slurm: Here) -> bool:
    return not slurm.slurm.told("squeue", "-h")


@pytest.mark.parametrize(
    ("slurm", "how"),
    [(WARNS, "time"), (WARNS, "preempted"), ("", "preempted"), (WARNS, "cancelled")],
    indirect=["slurm"],
)
def test_the_batch_file_of_one_run(slurm, undisturbed, how):
    job = batch(slurm, "run.sbatch", *RUN, RESTS)
    slurm.training(1)
    if how == "time":
        slurm.slurm.told("scancel", "--batch", "--signal=USR1", job)
    elif how == "preempted":
        slurm.slurm.told(*OTHER)
    else:
        slurm.slurm.told("scancel", job)
    slurm.slurm.until(lambda: done(slurm))
    if how == "cancelled":
        assert slurm.results()[0]["state"] == "interrupted"
        batch(slurm, "run.sbatch", *RUN, RESTS)
        slurm.slurm.until(lambda: done(slurm))
    assert slurm.weights() == {0: undisturbed[0]}
    assert slurm.count("continued after step") == 1


def test_the_batch_file_of_an_array(slurm):
    """Each task is one job of the sweep, in the folder of the same single command; the second time all is there."""
    for _ in range(2):
        batch(slurm, "array.sbatch", "--array=0-3", *RUN, "train.epochs=1")
        slurm.slurm.until(lambda: done(slurm))
    assert len(slurm.runs()) == 4 and slurm.count("test accuracy") == 4
    code, output = slurm.command("-m", *RUN, "train.epochs=1", "seed=0,1", "optimizer.lr=0.01,0.05")
    assert code == 0 and "4 of 4 jobs finished" in output and len(slurm.runs()) == 4, output


def test_the_batch_file_of_torchrun(slurm):
    """Two tasks on one node in place of two nodes: undisturbed, and back to the queue when its time is up."""
    slurm.slurm.variables["PROCESSES"] = "1"
    argv = ["torchrun.sbatch", "--nodes=1", "--ntasks-per-node=2", *RUN, RESTS]
    batch(slurm, *argv, "run.root=alone/outputs")
    slurm.slurm.until(lambda: done(slurm))
    job = batch(slurm, *argv)
    slurm.training(1)
    slurm.slurm.told("scancel", "--batch", "--signal=USR1", job)
    slurm.slurm.until(lambda: done(slurm))
    assert slurm.weights() == Here(slurm.slurm, slurm.folder / "alone").weights()
    assert slurm.results()[0]["state"] == "finished" and slurm.count("continued after step") == 1


def test_srun_as_the_page_of_several_devices_shows_it(slurm):
    """Two tasks of one node, without GPUs. Warned and submitted again, they end with the bits of device.processes."""
    page = (ROOT / "docs" / "distributed.md").read_text("utf-8")
    (shown,) = re.findall(r"^#!/bin/bash\n.*?(?=^```)", page, re.DOTALL | re.MULTILINE)
    file = slurm.folder / "srun.sbatch"
    file.write_text(
        shown.replace("--gpus-per-node=4 ", "").replace("...", shlex.join([*RUN, RESTS]))
    )
    job = batch(slurm, str(file), "--nodes=1", "--ntasks-per-node=2")
    slurm.training(1)
    slurm.slurm.told("scancel", "--signal=TERM", job)  # as --signal sends it, to the tasks
    slurm.slurm.until(lambda: done(slurm))
    assert slurm.results()[0]["state"] == "interrupted"
    batch(slurm, str(file), "--nodes=1", "--ntasks-per-node=2")
    slurm.slurm.until(lambda: done(slurm))
    code, output = slurm.command(*RUN, "device.processes=2", "run.root=alone/outputs")
    assert code == 0 and slurm.weights() == Here(slurm.slurm, slurm.folder / "alone").weights(), (
        output
    )
    assert slurm.count("continued after step") == 1
