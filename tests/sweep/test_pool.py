"""The local launcher: who gets which share of the machine, what is run again, and that a job is what it is alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, result
from vggexp.sweep import pool
from vggexp.system.cpu import default_threads

ROOT = Path(__file__).parents[2]
SMALL = [*(word for word in TINY if word != "device.threads=1"), "train.epochs=1"]


def vggexp(folder, *argv, **variables):
    """A process of its own: what forks must not have run torch's operations on several threads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "vggexp", *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def environments(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/*/env.json"))]


@pytest.mark.parametrize(
    ("cores", "wanted", "per_gpu", "gpus", "count", "threads", "visible"),
    [
        (2, "auto", 1, None, 1, 2, [None]),
        (16, "auto", 1, None, 4, 4, [None] * 4),
        (16, 3, 1, None, 3, 5, [None] * 3),
        (2, 8, 1, None, 8, 1, [None] * 8),
        (16, "auto", 1, [0, 1], 2, 8, ["0", "1"]),
        (16, "auto", 2, ["a", "b"], 4, 4, ["a", "b", "a", "b"]),
        (16, 3, 2, [5, 6], 3, 5, ["5", "6", "5"]),
        (16, 1, 1, [5, 6], 1, 16, ["5"]),
    ],
)
def test_the_machine_is_divided(cores, wanted, per_gpu, gpus, count, threads, visible, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    assert default_threads() == cores
    slots = pool.make_slots(wanted, per_gpu, gpus, "cpu")
    assert [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in slots] == visible
    assert [slot.variables["OMP_NUM_THREADS"] for slot in slots] == [str(threads)] * count


@pytest.mark.parametrize(("ranks", "visible"), [(2, ["0,1", "2,3"]), (3, ["0,1,2"]), (6, [None])])
def test_a_job_of_several_ranks_gets_as_many_gpus(ranks, visible, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    slots = pool.make_slots("auto", 1, range(5), "cpu", ranks)
    assert [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in slots] == visible


def test_each_job_sees_its_own_gpu_and_its_share_of_the_threads(tmp_path):
    words = ["hydra.launcher.jobs=4", "hydra.launcher.gpus=[7,9]", "seed=range(8)"]
    end = vggexp(tmp_path, "-m", *SMALL, *words, OMP_NUM_THREADS="8")
    assert (end.returncode, end.stderr) == (0, "")
    seen = [known["variables"]["CUDA_VISIBLE_DEVICES"] for known in environments(tmp_path)]
    assert set(seen) == {"7", "9"} and {known["threads"] for known in environments(tmp_path)} == {2}


def test_a_job_is_what_it_is_alone(tmp_path):
    (tmp_path / "alone").mkdir()
    end = vggexp(
        tmp_path,
        "-m",
        *SMALL,
        "arch.norm=none,batch",
        "seed=1,2",
        "hydra.launcher.jobs=2",
        OMP_NUM_THREADS="2",
    )
    assert end.returncode == 0, end.stderr
    jobs = sorted(tmp_path.glob("outputs/*/result.json"))
    for path in jobs:
        words = (path.parent / "overrides.txt").read_text().splitlines()
        assert vggexp(tmp_path / "alone", *words, OMP_NUM_THREADS="1").returncode == 0
        other = json.loads((tmp_path / "alone" / path.relative_to(tmp_path)).read_text())
        assert json.loads(path.read_text())["weights_sha256"] == other["weights_sha256"]
    assert len(jobs) == 4


def test_only_what_is_missing_runs(tmp_path, monkeypatch):
    """Jobs may be added, removed and re-ordered; one that failed is tried again where that is asked for."""
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", *SMALL, "device.threads=1"]
    end = vggexp(tmp_path, *sweep, "optimizer.lr=0.01,99")
    assert (end.returncode, end.stderr.count("\n")) == (7, 1)
    assert "failed   2/2  " in end.stdout and "not finite at epoch 1" in end.stdout
    end = vggexp(tmp_path, *sweep, "optimizer.lr=99,0.02,0.01")
    assert end.returncode == 7 and "before   1 of 3 jobs finished" in end.stdout
    assert (
        end.stdout.count("started  ") == 1
        and "(before; sweep.retry_failed=true tries again)" in end.stdout
    )
    end = vggexp(tmp_path, *sweep, "optimizer.lr=99,0.01", "sweep.retry_failed=true")
    assert end.returncode == 7 and end.stdout.count("started  ") == 1
    attempts = {known["attempts"] for known in environments(tmp_path)}
    assert attempts == {1, 2}


def test_a_sweep_may_stop_at_the_first_failure(tmp_path):
    end = vggexp(
        tmp_path,
        "-m",
        *SMALL,
        "device.threads=1",
        "optimizer.lr=99,0.01,0.02",
        "sweep.on_error=stop",
    )
    assert end.returncode == 7 and len(list(tmp_path.glob("outputs/*/result.json"))) == 1
    assert end.stdout.count("not started") == 2


def test_the_failure_has_its_line_its_log_and_its_row(tmp_path):
    end = vggexp(tmp_path, "-m", *SMALL, "device.threads=1", "optimizer.lr=0.01,99")
    line = next(line for line in end.stdout.splitlines() if line.startswith("failed"))
    log = tmp_path / line.rpartition("(")[2].rstrip(")")
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith("vggexp: error: the loss or its gradient is not finite")
    )
    table = (next(tmp_path.glob("outputs/sweeps/*")) / "results.csv").read_text().splitlines()
    assert (
        ",failed,the loss or its gradient is not finite" in table[-1] and ",finished,," in table[1]
    )


def test_last_words(tmp_path):
    log = tmp_path / "log"
    assert pool.last_error_line(log) == ""
    log.write_text("epoch 1/2\n\n")
    assert pool.last_error_line(log) == "epoch 1/2"
    log.write_text("vggexp: error: first\nvggexp: stopped by SIGTERM\nclosing\n")
    assert pool.last_error_line(log) == "stopped by SIGTERM"


def test_repeats_have_a_mean_and_are_one_run_in_tensorboard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = vggexp(
        tmp_path, "-m", *SMALL, "device.threads=1", "optimizer.lr=0.01,0.02", "sweep.repeats=2"
    )
    assert end.returncode == 0 and "val/accuracy mean ± sd" in end.stdout
    folder = next(tmp_path.glob("outputs/sweeps/*"))
    values = {}
    for path in tmp_path.glob("outputs/*lr0.01*"):
        values[path.name] = result(path.name)["val/loss"]
    mean = f"{sum(values.values()) / 2:.4f}"
    assert mean in end.stdout and mean in (folder / "results.md").read_text()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1 and len(values) == 2
