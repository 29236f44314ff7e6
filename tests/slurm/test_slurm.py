"""Tests runs on a real Slurm: a run whose job ends early continues and ends with the same bits."""

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

from tests.slurm.cluster import USER_SIGNAL, Cluster, cluster

pytestmark = [pytest.mark.slow, pytest.mark.process]
ROOT = Path(__file__).parents[2]
RUN = [
    "data=synthetic",
    "data.images=96",
    "data.batch_size=32",
    "data.size=32",
    "arch.hidden=[16]",
    "arch.width=0.05",
    "device=cpu",
    "device.threads=1",
    "train.epochs=30",
]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30"]
PAUSES = "train.rest_minutes=0.01"  # half a minute in all, in which a test can act
SWEEP = ["-m", *RUN, *SLURM, "seed=0,1", PAUSES]
PREEMPTING_JOB = [
    "sbatch",
    "--partition=high",
    "--ntasks=2",
    "--wait",
    "--output=/dev/null",
    "--wrap=sleep 1",
]


class Workspace:
    """A cluster with a folder of runs."""

    def __init__(self, slurm: Cluster | None, folder: Path):
        self.slurm = slurm
        self.folder = folder

    @contextlib.contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen]:
        """Starts a command of vggexp, which ends at the latest with the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "vggexp", *argv],
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
        """Runs a command, and `meanwhile` beside it; returns its exit code and output."""
        with self.started(*argv) as process:
            meanwhile()
            output, _ = process.communicate(timeout=300)
            return process.returncode, output

    def wait_for_training(self, jobs: int = 2) -> None:
        """Waits until so many runs have finished an epoch."""

        def training() -> bool:
            paths = self.folder.glob("outputs/*/metrics.jsonl")
            return sum(path.stat().st_size > 0 for path in paths) == jobs

        self.slurm.wait_until(training)

    def wait_for_empty_queue(self) -> None:
        self.slurm.wait_until(lambda: not self.slurm.output("squeue", "-h"))

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("outputs/*/result.json"))

    def results(self) -> dict[int, dict]:
        """Returns the content of each result.json by seed."""
        by_seed = {}
        for run in self.runs():
            seed = (run.name.partition("-seed")[2] or "0").partition("-")[0]
            by_seed[int(seed)] = json.loads((run / "result.json").read_text())
        return by_seed

    def weights(self) -> dict[int, str]:
        return {seed: result.get("weights_sha256") for seed, result in self.results().items()}

    def count(self, text: str) -> int:
        """Returns how often the runs printed a text."""
        return sum((run / "run.log").read_text().count(text) for run in self.runs())

    def running_jobs(self) -> list[str]:
        """Returns the ids of the running jobs."""
        return self.slurm.output("squeue", "-h", "--array", "-t", "running", "-o", "%i").split()

    def submit(self, file: str, *argv: str) -> str:
        """Submits a batch file from docs/slurm and returns the id of its job."""
        options = [word for word in argv if word.startswith("--")]
        overrides = [word for word in argv if word not in options]
        path = str(ROOT / "docs" / "slurm" / file)
        process = subprocess.run(
            ["sbatch", "--parsable", "--cpus-per-task=1", *options, path, *overrides],
            cwd=self.folder,
            env=self.slurm.variables,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()


def make_environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of both runs without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = [sys.executable, "-m", "vggexp", "-m", *RUN, "seed=0,1", "hydra.launcher.jobs=2"]
    subprocess.run(argv, cwd=folder, env=make_environment(), check=True, capture_output=True)
    return Workspace(None, folder).weights()


@pytest.fixture
def work(tmp_path, request, monkeypatch):
    """A workspace on a cluster; the parameter is the additional line of slurm.conf."""
    assert shutil.which("slurmctld"), (
        "slurmctld is not installed: apt-get install --no-install-recommends slurm-wlm"
    )
    monkeypatch.setattr(os, "environ", make_environment())
    extra = getattr(request, "param", USER_SIGNAL)
    with cluster(tmp_path / "slurm", extra=extra) as slurm:
        folder = tmp_path / "work"
        folder.mkdir()
        yield Workspace(slurm, folder)


def test_a_sweep_is_an_array_and_runs_only_missing_jobs(work):
    argv = ["-m", *RUN, *SLURM, "train.epochs=2"]
    code, output = work.command(*argv, "optimizer.lr=0.01,0.02,100")
    assert code == 7
    assert "1 of 3 jobs did not finish" in output
    assert "not finite" in output
    work.wait_for_empty_queue()
    jobs = work.slurm.output("squeue", "-h", "-t", "all", "-o", "%F %T").split("\n")
    assert len(jobs) == 3
    assert len(set(jobs)) == 1  # one array
    assert jobs[0].endswith("COMPLETED")  # the failed job as well
    code, output = work.command(*argv, "optimizer.lr=0.01,0.02,0.03")
    assert code == 0
    assert "already finished: 2 of 3 jobs" in output
    assert len(work.slurm.output("squeue", "-h", "-t", "all", "-o", "%F").split()) == 4


def test_each_rung_of_a_sweep_is_an_array(work):
    argv = ["-m", *RUN, "train.epochs=2", "optimizer.lr=0.01,0.02,0.03", "sweep.halving=2"]
    code, output = work.command(*argv, *SLURM)
    assert code == 0, output
    arrays = work.slurm.output("squeue", "-h", "-t", "all", "-o", "%F").split()
    assert sorted(map(arrays.count, set(arrays))) == [2, 3]
    assert work.command(*argv, "run.root=alone/outputs")[0] == 0
    alone = Workspace(work.slurm, work.folder / "alone")
    assert [run.name for run in work.runs()] == [run.name for run in alone.runs()]
    for run, other in zip(work.runs(), alone.runs(), strict=True):
        results = [json.loads((path / "result.json").read_text()) for path in (run, other)]
        for key in ("state", "epoch", "val/accuracy", "weights_sha256"):
            assert results[0].get(key) == results[1].get(key)


@pytest.mark.parametrize(
    "work", [USER_SIGNAL, ""], indirect=True, ids=["warned by USR2", "warned by TERM"]
)
def test_preempted_jobs_return_and_end_the_same(work, undisturbed):
    def preempt() -> None:
        work.wait_for_training()
        work.slurm.output(*PREEMPTING_JOB)

    code, output = work.command(*SWEEP, meanwhile=preempt)
    assert (code, work.weights()) == (0, undisturbed), output
    assert work.count("continued after step") == 2
    assert work.count("test accuracy") == 2


def test_jobs_continue_after_their_time_limit(work):
    """The pause between two epochs is longer than the time limit of a job."""
    times = [
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=30",
        "train.rest_minutes=10",
    ]
    code, output = work.command(*SWEEP, "train.epochs=2", *times)
    assert code == 0, output
    assert work.count("continued after step 3: 1 epoch and") == 2, output
    alone = ["-m", *RUN, "seed=0,1", "train.epochs=2", "run.root=alone/outputs"]
    assert work.command(*alone)[0] == 0
    assert work.weights() == Workspace(work.slurm, work.folder / "alone").weights()


def test_a_job_that_may_not_return_is_reported(work, undisturbed):
    """submitit's defaults allow no time-out; within ten minutes any signal counts as one."""
    argv = [*SWEEP, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]

    def warn() -> None:
        work.wait_for_training()
        work.slurm.output("scancel", "--signal=USR2", work.running_jobs()[0])

    code, output = work.command(*argv, meanwhile=warn)
    assert code == 7, output
    assert output.count("left no result (FAILED)") == 1, output
    assert "Traceback" not in output, output
    reason = "vggexp: SIGUSR2: Job not requeued because: timed-out too many times."
    logs = [path.read_text() for path in work.folder.glob("outputs/sweeps/*/.submitit/*/*.err")]
    assert sum(reason in log for log in logs) == 1
    assert work.command(*argv)[0] == 0
    assert work.weights() == undisturbed


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_job_that_ends_early_is_reported_and_ends_no_other(work, undisturbed, how):
    """The cluster has no sacct. A cancelled job saves; a killed job has its last checkpoint."""

    def end() -> None:
        work.wait_for_training()
        if how == "cancelled":
            work.slurm.output("scancel", work.running_jobs()[0])
        else:
            pid = int((work.runs()[0] / ".lock").read_text().split()[-1])
            os.kill(pid, signal.SIGKILL)

    code, output = work.command(*SWEEP, meanwhile=end)
    assert code == 7, output
    assert output.count("left no result") == 1, output
    assert "Traceback" not in output, output
    states = sorted(result["state"] for result in work.results().values())
    assert states == ["finished", "interrupted" if how == "cancelled" else "running"]
    code, output = work.command(*SWEEP)
    assert code == 0
    assert "already finished: 1 of 2 jobs" in output
    assert work.weights() == undisturbed
    assert work.count("continued after step") == 1


@pytest.mark.parametrize("how", ["down", "gone"])
def test_jobs_continue_after_a_node_failure(work, undisturbed, how):
    def fail() -> None:
        work.wait_for_training()
        if how == "down":
            update = ["scontrol", "update", f"nodename={work.slurm.host}"]
            work.slurm.output(*update, "state=down", "reason=test")
            work.slurm.wait_until(lambda: not work.running_jobs())
            work.slurm.output(*update, "state=resume")
        else:
            work.slurm.kill_node()
            work.slurm.wait_until(lambda: not work.running_jobs())
            work.slurm.start("slurmd")

    code, output = work.command(*SWEEP, meanwhile=fail)
    assert (code, work.weights()) == (0, undisturbed), output
    assert work.count("continued after step") == 2


def test_jobs_continue_without_their_launcher(work, undisturbed):
    """The same command waits for the jobs and trains nothing twice."""
    with work.started(*SWEEP):
        work.wait_for_training()
    code, output = work.command(*SWEEP)
    assert (code, work.weights()) == (0, undisturbed), output
    assert work.count("continued after step") == 0
    assert work.count("test accuracy") == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("partition=nope", "invalid partition specified: nope"),
        ("gpus_per_node=1", "Invalid generic"),
    ],
)
def test_a_refusal_of_slurm_is_one_line(work, override, reason):
    code, output = work.command(*SWEEP, f"hydra.launcher.{override}")
    assert code == 2
    assert f"vggexp: error: hydra.launcher: sbatch: error: {reason}" in output
    assert "Traceback" not in output
    assert not work.runs()


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (USER_SIGNAL, "time"),
        (USER_SIGNAL, "preempted"),
        ("", "preempted"),
        (USER_SIGNAL, "cancelled"),
    ],
    indirect=["work"],
)
def test_the_batch_file_of_one_run(work, undisturbed, how):
    job = work.submit("run.sbatch", *RUN, PAUSES)
    work.wait_for_training(1)
    if how == "time":
        work.slurm.output("scancel", "--batch", "--signal=USR1", job)
    elif how == "preempted":
        work.slurm.output(*PREEMPTING_JOB)
    else:
        work.slurm.output("scancel", job)
    work.wait_for_empty_queue()
    if how == "cancelled":
        assert work.results()[0]["state"] == "interrupted"
        work.submit("run.sbatch", *RUN, PAUSES)
        work.wait_for_empty_queue()
    assert work.weights() == {0: undisturbed[0]}
    assert work.count("continued after step") == 1


def test_the_batch_file_of_an_array(work):
    """Each task is one job of the sweep, in the directory that the job has in a single command.

    The second submission finds every run finished.
    """
    for _ in range(2):
        work.submit("array.sbatch", "--array=0-3", *RUN, "train.epochs=1")
        work.wait_for_empty_queue()
    assert len(work.runs()) == 4
    assert work.count("test accuracy") == 4
    axes = ["seed=0,1", "optimizer.lr=0.01,0.05"]
    code, output = work.command("-m", *RUN, "train.epochs=1", *axes)
    assert code == 0, output
    assert "4 of 4 jobs finished" in output
    assert len(work.runs()) == 4, output


def test_the_batch_file_of_torchrun(work):
    """Two tasks on one node stand for two nodes; at its time limit the job returns to the queue."""
    work.slurm.variables["PROCESSES"] = "1"
    argv = ["torchrun.sbatch", "--nodes=1", "--ntasks-per-node=2", *RUN, PAUSES]
    work.submit(*argv, "run.root=alone/outputs")
    work.wait_for_empty_queue()
    job = work.submit(*argv)
    work.wait_for_training(1)
    work.slurm.output("scancel", "--batch", "--signal=USR1", job)
    work.wait_for_empty_queue()
    assert work.weights() == Workspace(work.slurm, work.folder / "alone").weights()
    assert work.results()[0]["state"] == "finished"
    assert work.count("continued after step") == 1


def test_the_batch_file_of_srun_in_the_docs(work):
    """Two tasks of one node, without GPUs.

    Warned and submitted again, they end with the bits of device.processes.
    """
    page = (ROOT / "docs" / "distributed.md").read_text("utf-8")
    (text,) = re.findall(r"^#!/bin/bash\n.*?(?=^```)", page, re.DOTALL | re.MULTILINE)
    text = text.replace("--gpus-per-node=4 ", "").replace("...", shlex.join([*RUN, PAUSES]))
    file = work.folder / "srun.sbatch"
    file.write_text(text)
    argv = [str(file), "--nodes=1", "--ntasks-per-node=2"]
    job = work.submit(*argv)
    work.wait_for_training(1)
    work.slurm.output("scancel", "--signal=TERM", job)  # as --signal sends it, to the tasks
    work.wait_for_empty_queue()
    assert work.results()[0]["state"] == "interrupted"
    work.submit(*argv)
    work.wait_for_empty_queue()
    code, output = work.command(*RUN, "device.processes=2", "run.root=alone/outputs")
    assert code == 0, output
    assert work.weights() == Workspace(work.slurm, work.folder / "alone").weights(), output
    assert work.count("continued after step") == 1
