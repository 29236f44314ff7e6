"""Tests what Hydra calls for each job: exit codes, pickling, and preempted Slurm jobs."""

import pickle
import stat

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.sweep.expand import compose_run
from vggexp.sweep.task import HydraTask, report_if_done, requeue_if_preempted


def test_a_pickled_task_leaves_the_checked_jobs_out():
    config = compose_run(parse_command([*TINY, "device=cpu"]))
    task = HydraTask({("seed=1",): config}, swept=["seed"], first_words=["--config-dir=mine"])
    assert task.configs == {("seed=1",): config}
    copy = pickle.loads(pickle.dumps(task))
    assert copy.configs == {}
    assert (copy.swept, copy.first_words) == (["seed"], ["--config-dir=mine"])


@pytest.mark.process
def test_a_finished_run_is_reported(command):
    config = compose_run(parse_command(TINY))
    assert not report_if_done(config)
    assert command(*TINY)[0] == 0
    assert command(*TINY)[1].startswith("already finished: test accuracy ")
    assert report_if_done(config)


@pytest.mark.process
@pytest.mark.parametrize(("overrides", "code"), [([], 0), (["optimizer.lr=100"], 5)])
def test_the_exit_code_of_a_single_run(command, overrides, code):
    assert command(*TINY, "arch.init=paper", *overrides)[0] == code


@pytest.mark.process
def test_an_expected_error_is_printed_once_with_its_traceback(command, monkeypatch):
    monkeypatch.setenv("VGGEXP_TRACEBACK", "1")
    code, _, err = command(*TINY, "arch.init=paper", "optimizer.lr=100")
    assert code == 1
    assert err.count("vggexp: error: the loss or its gradient is not finite") == 1
    assert "DivergedError" in err


SCONTROL = """\
#!/bin/sh
echo "$@" >> {log}
echo "JobId=7 JobState={state} PreemptTime={preempted} Restarts=0"
"""


@pytest.mark.parametrize(
    ("executor", "state", "preempted", "is_requeued"),
    [
        ("slurm", "RUNNING", "2026-01-01T00:00:00", True),
        ("slurm", "RUNNING", "None", False),  # its time was up
        ("slurm", "CANCELLED", "2026-01-01T00:00:00", False),
        ("local", "RUNNING", "2026-01-01T00:00:00", False),
    ],
)
def test_only_a_preempted_job_is_requeued(
    executor, state, preempted, is_requeued, tmp_path, monkeypatch
):
    log = tmp_path / "log"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL.format(log=log, state=state, preempted=preempted))
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    requeue_if_preempted()
    commands = log.read_text().splitlines() if log.exists() else []
    assert ("requeue 7_0" in commands) == is_requeued
