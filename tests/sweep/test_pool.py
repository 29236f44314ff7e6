"""Tests the local launcher: each job's share of the machine, and which jobs run again."""

import contextlib
import json
import os
import signal
import time

import pytest

from tests.conftest import TINY, write_epochs
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.config.keys import to_plain
from vggexp.errors import InUseError, ResourceError, StoppedError
from vggexp.models.shapes import macs
from vggexp.runs.directory import read_result, write_metadata, write_result
from vggexp.sweep import parallel, pool
from vggexp.sweep.expand import compose_run
from vggexp.sweep.pool import last_error_line, make_job, make_slots, run_pool
from vggexp.sweep.progress import SweepProgress
from vggexp.system import processes, signals
from vggexp.system.cpu import default_threads
from vggexp.system.locks import lock_run_dir

SMALL = [*(override for override in TINY if override != "device.threads=1"), "train.epochs=1"]
ONE_THREAD = [*SMALL, "device.threads=1"]


def environments(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/*/env.json"))]


@pytest.mark.parametrize(
    ("cores", "jobs", "per_gpu", "gpus", "count", "threads", "visible"),
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
def test_slots_divide_the_machine(cores, jobs, per_gpu, gpus, count, threads, visible, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    assert default_threads() == cores
    slots = make_slots(jobs, per_gpu, gpus, "cpu")
    assert [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in slots] == visible
    assert [slot.variables["OMP_NUM_THREADS"] for slot in slots] == [str(threads)] * count


@pytest.mark.parametrize(("ranks", "visible"), [(2, ["0,1", "2,3"]), (3, ["0,1,2"]), (6, [None])])
def test_a_job_of_several_ranks_gets_as_many_gpus(ranks, visible, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    slots = make_slots("auto", 1, range(5), "cpu", ranks)
    assert [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in slots] == visible


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1", "2"]), ("GPU-a,5", ["GPU-a", "5"])]
)
def test_jobs_on_cuda_use_the_visible_gpus(visible, names, monkeypatch):
    monkeypatch.setattr(parallel, "count_cuda_devices", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots = make_slots("auto", 1, None, "cuda")
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == names


def test_the_last_error_line_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_error_line(log) == ""
    log.write_text("epoch 1/2\n\n")
    assert last_error_line(log) == "epoch 1/2"
    log.write_text("vggexp: error: first\nvggexp: stopped by SIGTERM\nclosing\n")
    assert last_error_line(log) == "stopped by SIGTERM"
    assert last_error_line(log, start=len("vggexp: error: first\nvggexp: ")) == "closing"


def test_the_output_of_jobs_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "jobs").symlink_to("mine")
    with pytest.raises(ResourceError, match="jobs: a link, and no file is written through links"):
        run_pool([], [], lambda job: 0, tmp_path)


@pytest.mark.process
def test_each_job_has_its_gpu_and_its_share_of_the_threads(tmp_path, fork_command):
    overrides = ["hydra.launcher.jobs=4", "hydra.launcher.gpus=[7,9]", "seed=range(5)"]
    overrides += ["data.size=8", "arch.blocks=[[1,4]]"]
    process = fork_command(tmp_path, "-m", *SMALL, *overrides, OMP_NUM_THREADS="8")
    assert (process.returncode, process.stderr) == (0, "")
    recorded = environments(tmp_path)
    gpus = {environment["variables"]["CUDA_VISIBLE_DEVICES"] for environment in recorded}
    assert gpus == {"7", "9"}
    assert {environment["threads"] for environment in recorded} == {2}


@pytest.mark.process
def test_a_job_computes_what_it_computes_alone(tmp_path, fork_command):
    (tmp_path / "alone").mkdir()
    overrides = ["arch.norm=none,batch", "seed=1,2", "hydra.launcher.jobs=2"]
    process = fork_command(tmp_path, "-m", *SMALL, *overrides, OMP_NUM_THREADS="2")
    assert process.returncode == 0, process.stderr
    results = sorted(tmp_path.glob("outputs/*/result.json"))
    assert len(results) == 4
    for path in results:
        argv = (path.parent / "overrides.txt").read_text().splitlines()
        argv.append(f"run.name={path.parent.name}")  # alone, the name has other keys
        assert fork_command(tmp_path / "alone", *argv, OMP_NUM_THREADS="1").returncode == 0
        alone = json.loads((tmp_path / "alone" / path.relative_to(tmp_path)).read_text())
        assert json.loads(path.read_text())["weights_sha256"] == alone["weights_sha256"]


@pytest.mark.process
def test_only_missing_jobs_run(tmp_path, fork_command):
    """Jobs may be added, removed and reordered. Failed jobs run again only on request."""
    sweep = ["-m", *ONE_THREAD]
    process = fork_command(tmp_path, *sweep, "optimizer.lr=0.01,99")
    assert process.returncode == 7
    assert process.stderr.count("\n") == 1
    assert "failed   job 2/2  " in process.stdout
    assert "not finite at epoch 1" in process.stdout
    process = fork_command(tmp_path, *sweep, "optimizer.lr=99,0.02,0.01")
    assert process.returncode == 7
    assert "sweep    3 jobs: 1 finished, 1 failed before (" in process.stdout
    assert process.stdout.count("started  ") == 1
    assert "(before; sweep.retry_failed=true tries again)" in process.stdout
    process = fork_command(tmp_path, *sweep, "optimizer.lr=99,0.01", "sweep.retry_failed=true")
    assert process.returncode == 7
    assert process.stdout.count("started  ") == 1
    assert {environment["attempts"] for environment in environments(tmp_path)} == {1, 2}


@pytest.mark.process
def test_jobs_of_new_runs_may_pause(tmp_path, fork_command):
    """With resume=never no recorded run is the result of a job, but the one that it has made."""
    overrides = ["train.epochs=2", "run.until=1", "resume=never", "seed=1,2"]
    process = fork_command(tmp_path, "-m", *ONE_THREAD, *overrides)
    assert (process.returncode, process.stderr) == (0, "")
    ends = [line for line in process.stdout.splitlines() if line.startswith("paused ")]
    assert len(ends) == 2
    assert all("  val/accuracy 0." in line for line in ends)
    assert "failed " not in process.stdout


@pytest.mark.process
def test_a_sweep_may_stop_at_the_first_failure(tmp_path, fork_command):
    """The same command again starts no job either, until the failed one is tried again."""
    overrides = ["optimizer.lr=99,0.01,0.02", "sweep.on_error=stop"]
    for started in (1, 0):
        process = fork_command(tmp_path, "-m", *ONE_THREAD, *overrides)
        assert process.returncode == 7
        assert process.stdout.count("started  job") == started
        assert len(list(tmp_path.glob("outputs/*/result.json"))) == 1
        assert process.stdout.count("not started") == 2


@pytest.mark.process
def test_a_failure_has_a_line_a_log_and_a_row(tmp_path, fork_command):
    process = fork_command(tmp_path, "-m", *ONE_THREAD, "optimizer.lr=0.01,99")
    line = next(line for line in process.stdout.splitlines() if line.startswith("failed"))
    log = tmp_path / line.rpartition("(")[2].rstrip(")")
    reason = "the loss or its gradient is not finite"
    assert log.read_text().splitlines()[-1].startswith(f"vggexp: error: {reason}")
    table = (next(tmp_path.glob("outputs/sweeps/*")) / "results.csv").read_text().splitlines()
    assert f",failed,{reason}" in table[-1]
    assert ",finished,," in table[1]


@pytest.fixture
def run_job(tmp_path):
    """run_job(perform) runs one job, whose process calls perform(run directory) -> result."""
    config = job_config(tmp_path)

    def run(perform):
        job = make_job(0, config)
        slots = make_slots(1, 1, None, "cpu")
        return run_pool([job], slots, lambda job: perform(job.folder), tmp_path / "sweep")[0]

    run.folder = make_job(0, config).folder
    return run


def job_config(root, *overrides):
    return compose_run(parse_command([*TINY, "device=cpu", f"run.root={root}", *overrides]))


def finish(folder):
    folder.mkdir(exist_ok=True)
    write_metadata(folder, to_plain(job_config(folder.parent)), [], {})
    write_result(folder, "finished", **{"val/accuracy": 0.5, "test/accuracy": 0.5})
    return 0


def finish_late(folder):
    time.sleep(2)
    return finish(folder)


@pytest.mark.parametrize(
    ("overrides", "trained", "passes", "share"),
    [
        ([], 0, 4 * 268 + 19, 4 * 268 / 1091),
        ([], 3, 268 + 19, 268 / 287),
        ([], 4, 19, 0),
        (["run.until=3"], 1, 2 * 268, 1),
        (["run.until=4"], 1, 3 * 268 + 19, 804 / 823),
        (["run.until=1"], 3, 0, 1),  # the run has trained on
        (["train.test_flip=true", "train.test_shift=1"], 3, 268 + 10 * 19, 268 / 458),
    ],
)
def test_the_work_of_a_job_is_what_is_missing(overrides, trained, passes, share, tmp_path):
    """An epoch of the 86 + 10 images is 3 x 86 + 10 forward passes, and the test is 19."""
    config = job_config(tmp_path, "train.epochs=4", *overrides)
    write_epochs(config, [0.5] * trained)
    job = make_job(0, config)
    assert job.work == passes * macs(layers(config))
    assert job.epochs_share == pytest.approx(share)


def test_a_killed_job_is_recorded_as_interrupted(run_job):
    def die(folder):
        folder.mkdir()
        write_result(folder, "running")
        os.kill(os.getpid(), signal.SIGKILL)

    result = run_job(die)
    assert (result.ok, result.error) == (False, "killed by SIGKILL")
    recorded = read_result(run_job.folder)
    assert (recorded["state"], recorded["exit_code"]) == ("interrupted", 137)


def test_a_stop_signal_is_passed_on_to_the_jobs(run_job):
    def stop_the_sweep(folder):
        os.kill(os.getppid(), signal.SIGTERM)
        return finish_late(folder)

    with pytest.raises(StoppedError):
        run_job(stop_the_sweep)
    assert not run_job.folder.exists()


def test_a_stop_signal_ends_the_imports_for_the_waiting_jobs(tmp_path, monkeypatch):
    """On a busy machine they take longer than the jobs that the signal is for."""
    imported = []

    def import_slowly(jobs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        imported.extend(jobs)

    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(pool, "preload", import_slowly)
    config = job_config(tmp_path)
    jobs = [make_job(index, config) for index in range(2)]
    with pytest.raises(StoppedError):
        run_pool(jobs, make_slots(1, 1, None, "cpu"), lambda job: 0, tmp_path / "sweep")
    assert imported == []


def test_no_job_outlives_its_sweep(run_job, monkeypatch):
    def interrupt(progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(SweepProgress, "refresh", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_job(finish_late)
    assert not run_job.folder.exists()


def test_the_wait_for_the_last_jobs_leaves_the_processor_free(run_job, monkeypatch):
    polls = []
    original = processes.poll

    def ignore_interrupt(folder):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        folder.mkdir()
        time.sleep(0.5)
        return 0

    def interrupt(progress):
        if run_job.folder.exists():
            polls.clear()
            raise KeyboardInterrupt

    def poll(pid):
        polls.append(pid)
        return original(pid)

    monkeypatch.setattr(SweepProgress, "refresh", interrupt)
    monkeypatch.setattr(processes, "poll", poll)
    with pytest.raises(KeyboardInterrupt):
        run_job(ignore_interrupt)
    assert 1 < len(polls) < 50


def test_a_job_that_another_process_has_begun_meanwhile_is_waited_for(run_job, monkeypatch):
    monkeypatch.setattr(pool, "ELSEWHERE_SECONDS", 0)

    def come_second(folder):
        if folder.exists():
            return finish(folder)
        folder.mkdir()
        return InUseError.exit_code

    result = run_job(come_second)
    assert (result.ok, result.objective) == (True, 0.5)


def test_a_run_that_another_process_holds_is_not_started(run_job, monkeypatch):
    monkeypatch.setattr(pool, "ELSEWHERE_SECONDS", 0)

    def start(folder):
        with lock_run_dir(folder):
            return finish(folder)

    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_run_dir(run_job.folder))
        monkeypatch.setattr(SweepProgress, "on_wait", lambda *_: stack.close())
        assert run_job(start).ok


def test_a_stopped_sweep_of_new_runs_says_how_they_continue(tmp_path, monkeypatch):
    config = compose_run(parse_command([*TINY, "resume=never"]))
    monkeypatch.setattr(pool.Pool, "run_all", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(StoppedError, match=r": run\.name=NAME of its folder, in place of"):
        run_pool([pool.PoolJob(0, tmp_path / "a", config)], [], lambda _: 0, tmp_path)
