"""Runs of several ranks as real processes: equal results, faults and refusals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY, write_images
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_hash
from vggexp.sweep.expand import compose_run
from vggexp.training import checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
EXACT = [
    *TINY,
    "data.images=128",
    "data.val_fraction=0.25",
    "device.precision=fp32",
    "arch.dropout=0",
]
LONG = [
    "data=synthetic",
    "data.images=640",
    "data.batch_size=32",
    "data.size=32",
    "arch.hidden=[16]",
    "arch.width=0.2",
    "train.epochs=3",
    "device.threads=1",
    "train.checkpoint_minutes=0.02",
]
VGGEXP = [sys.executable, "-m", "vggexp"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = [*TORCHRUN, "--nproc-per-node", "2", "--standalone"]
TORCHRUN_VGGEXP = [*STANDALONE, "-m", "vggexp"]


def start(folder, *overrides, command=VGGEXP, **variables):
    return subprocess.Popen(
        [*command, *overrides],
        cwd=folder,
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def finish(folder, *overrides, command=VGGEXP, **variables):
    """Runs a command that must succeed; returns the result of the run."""
    code, out, err = wait(start(folder, *overrides, command=command, **variables))
    assert code == 0, (out, err)
    if command is VGGEXP:
        assert err == "", (out, err)
    return result(folder, *overrides)


def result(folder, *overrides):
    (name,) = [word.removeprefix("run.name=") for word in overrides if word.startswith("run.name=")]
    return json.loads((folder / "outputs" / name / "result.json").read_text())


def weights(folder, name):
    path = sorted((folder / "outputs" / name / "checkpoints").glob("*.pt"))[-1]
    return checkpoint.select_eval_weights(checkpoint.load(path))


def largest_difference(folder, name, other_name):
    """Returns the largest difference of two runs' weights."""
    other = weights(folder, other_name)
    differences = [
        (value.float() - other[key].float()).abs().max().item()
        for key, value in weights(folder, name).items()
    ]
    return max(differences)


def test_the_hash_of_a_run_depends_on_typed_processes_only():
    def digits(*overrides):
        return run_hash(compose_run(parse_command([*TINY, *overrides])))

    assert digits() == digits("device.processes=1")
    assert digits() == digits("device.timeout_minutes=3")
    two_ranks = digits("device.processes=2")
    without_sync = digits("device.processes=2", "device.sync_batch_norm=false")
    assert len({digits(), two_ranks, without_sync}) == 3


@pytest.mark.process
def test_two_ranks_train_and_test_as_one(tmp_path, fork_command):
    runs = {"one": ["run.name=one"], "two": ["run.name=two", "device.processes=2"]}
    for overrides in runs.values():
        process = fork_command(tmp_path, *EXACT, "train.test_flip=true", *overrides)
        assert (process.returncode, process.stderr) == (0, "")
    single, double = (result(tmp_path, *overrides) for overrides in runs.values())
    difference = largest_difference(tmp_path, "one", "two")
    assert 0 < difference  # the sums have another order
    assert difference < 1e-5
    assert double["test/loss"] == pytest.approx(single["test/loss"], abs=1e-5)
    assert json.loads((tmp_path / "outputs/two/env.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "outputs/two").glob("events*"))) == 1


EVERYTHING = [
    "augment=strong",
    "train.accumulate=2",
    "train.ema=0.9",
    "train.clip_norm=1",
    "scheduler=cosine",
]
EQUAL = {  # name: overrides and the tolerance: batch norm over few numbers is steep
    "everything": ([*EVERYTHING], 1e-5),
    "batch norm": (["arch.norm=batch", *EVERYTHING], 1e-3),
    "a last batch of one": (["data.images=65", "data.val_fraction=0", "arch.norm=batch"], 1e-3),
    "best weights": (
        ["train.test_weights=best", "train.test_each_epoch=true", "train.epochs=3"],
        1e-5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_any_number_of_ranks_trains_as_one(name, tmp_path):
    overrides, tolerance = EQUAL[name]
    finish(tmp_path, *EXACT, *overrides, "run.name=r1")
    for ranks in ("2", "3"):
        if (ranks, name) == ("3", "batch norm"):
            continue  # three ranks do not halve a micro-batch as one does
        processes = f"device.processes={ranks}"
        finish(tmp_path, *EXACT, *overrides, f"run.name=r{ranks}", processes)
        assert largest_difference(tmp_path, "r1", f"r{ranks}") < tolerance


def srun_variables(rank):
    """Returns the variables of a task of srun."""
    return {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_every_launcher_gives_the_same_bits(tmp_path):
    overrides = [*TINY, "arch.norm=batch"]
    results = [
        finish(tmp_path, *overrides, f"run.name={name}", "device.processes=2") for name in "ab"
    ]
    results.append(finish(tmp_path, *overrides, "run.name=t", command=TORCHRUN_VGGEXP))
    two_nodes = [*TORCHRUN, "--nproc-per-node", "1", "--nnodes", "2", "--rdzv-backend", "c10d"]
    two_nodes += ["--rdzv-endpoint", f"localhost:{free_port()}", "-m", "vggexp"]
    nodes = [
        start(tmp_path, *overrides, "run.name=n", command=two_nodes, OMP_NUM_THREADS="1")
        for _ in range(2)
    ]
    assert [wait(node)[0] for node in nodes] == [0, 0]
    tasks = [start(tmp_path, *overrides, "run.name=s", **srun_variables(rank)) for rank in (0, 1)]
    assert [wait(task)[0] for task in tasks] == [0, 0]
    results += [result(tmp_path, f"run.name={name}") for name in "ns"]
    assert len({result["weights_sha256"] for result in results}) == 1


@pytest.mark.slow
def test_a_finished_run_under_torchrun_is_reported_once(tmp_path):
    finish(tmp_path, *TINY, "run.name=t", command=TORCHRUN_VGGEXP)
    code, out, _ = wait(start(tmp_path, *TINY, "run.name=t", command=TORCHRUN_VGGEXP))
    assert code == 0
    assert out.count("already finished") == 1


@pytest.mark.slow
def test_ranks_inside_a_sweep(tmp_path):
    code, _, _ = wait(start(tmp_path, "-m", *TINY, "device.processes=2", "seed=0,1"))
    assert code == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/result.json")]
    assert [result["state"] for result in results] == ["finished"] * 2
    overrides = [*TINY, "device.processes=2", "seed=1", "run.name=alone"]
    alone = finish(tmp_path, *overrides, OMP_NUM_THREADS="2")
    assert alone["weights_sha256"] in {result["weights_sha256"] for result in results}


IMAGE_FOLDER = [
    *[word for word in TINY if not word.startswith("data")],
    "data=image_folder",
    "data.root=d$RANK",
    "data.resize=32",
    "data.batch_size=4",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*TINY, "optimizer.lr=0.0$((RANK+1))"],
            "rank 1 is not as rank 0: optimizer.lr 0.01 -> 0.02; start all with",
        ),
        (
            [*TINY, "seed=$((RANK+1))", "train.ema=0.9"],
            "rank 1 is not as rank 0: seed 1 -> 2; start all with the same",
        ),
        (IMAGE_FOLDER, "rank 1 is not as rank 0: train "),
        ([*TINY, "data.batch_size=$((32-32*RANK))"], "data.batch_size=0: must be 1..65536"),
        (
            [*TINY, "-m", "seed=0,1"],
            "-m: each of the 2 ranks would run the whole sweep; start it once, without torchrun",
        ),
        ([*TINY, "device.processes=3"], "device.processes=3: 2 have been started; leave it out"),
    ],
)
def test_ranks_that_differ_are_refused(overrides, message, tmp_path):
    for index, count in enumerate((8, 9)):
        counts = {"train": count, "test": 8}
        write_images(tmp_path / f"d{index}", counts, lambda index: (40, 40), "png")
    line = " ".join([*VGGEXP, "run.name=x", *overrides])
    bash = ["--no-python", "bash", "-c", line]
    code, _, err = wait(start(tmp_path, *bash, command=STANDALONE))
    assert code != 0
    (report,) = reports(err)
    report = report.removeprefix("vggexp: error: ").removeprefix("rank 1: ")
    assert report.startswith(message)
    assert not (tmp_path / "outputs").exists()
    assert re.search(r"exitcode *: (9|2) ", err)


def reports(err):
    return [line for line in err.splitlines() if line.startswith("vggexp:")]


@pytest.fixture(scope="module")
def undisturbed_sha256(tmp_path_factory):
    """The weights of the long run without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(folder, *LONG, "run.name=x", "device.processes=2")["weights_sha256"]


@pytest.fixture
def check_continues(tmp_path, undisturbed_sha256):
    """check_continues(command): the same command ends with the weights of the undisturbed run."""

    def check(command=VGGEXP):
        overrides = [*LONG, "run.name=x"]
        if command is VGGEXP:
            overrides.append("device.processes=2")
        continued = finish(tmp_path, *overrides, command=command)
        assert continued["weights_sha256"] == undisturbed_sha256

    return check


def start_training(folder, *overrides, command=VGGEXP):
    """Starts the long run; returns its process and its ranks' pids after the first epoch."""
    overrides = [*LONG, "run.name=x", *overrides]
    if command is VGGEXP:
        overrides.append("device.processes=2")
    process = start(folder, *overrides, command=command)
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            break
    time.sleep(0.3)
    return process, rank_pids(process.pid)


def rank_pids(pid):
    children = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    ranks = []
    for child in sorted(children):
        command_line = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in command_line or b"vggexp" in command_line:
            ranks.append(child)
    return ranks


def have_ended(pids):
    """Returns whether all processes end within ten seconds. An orphan may stay as a zombie."""
    for _ in range(100):
        if all(map(has_ended, pids)):
            return True
        time.sleep(0.1)
    return False


def has_ended(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_the_same_command_continues(rank, tmp_path, check_continues):
    process, pids = start_training(tmp_path)
    os.kill(pids[rank], signal.SIGKILL)
    reason = f"rank {rank} was killed by SIGKILL"
    code, _, err = wait(process)
    assert code == 9
    assert err == f"vggexp: error: {reason}; run the same command to continue\n"
    assert have_ended(pids)
    recorded = result(tmp_path, "run.name=x")
    assert recorded["state"] == "interrupted"
    assert recorded["error"] == reason
    assert recorded["exit_code"] == 9
    check_continues()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)]
)
def test_a_stop_signal_reaches_the_ranks(name, expected, tmp_path, check_continues):
    process, pids = start_training(tmp_path)
    os.kill(process.pid, getattr(signal, name))
    code, _, err = wait(process)
    assert code == expected
    assert have_ended(pids)
    position = r"at epoch \d batch \d+"
    hint = "run the same command to continue"
    assert re.fullmatch(rf"vggexp: stopped by {name} {position}: {hint}\n", err)
    assert result(tmp_path, "run.name=x")["exit_code"] == expected
    check_continues()


@pytest.mark.slow
def test_a_stop_signal_of_one_rank_stops_all(tmp_path, check_continues):
    process, pids = start_training(tmp_path)
    os.kill(pids[1], signal.SIGTERM)
    code, _, _ = wait(process)
    assert code == 143
    assert have_ended(pids)
    check_continues()


@pytest.mark.slow
def test_no_rank_outlives_its_launcher(tmp_path, check_continues):
    process, pids = start_training(tmp_path)
    process.kill()
    assert process.wait(240) == -9
    assert have_ended(pids)
    assert result(tmp_path, "run.name=x")["state"] == "interrupted"  # after a checkpoint
    check_continues()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_rank_ends_the_run_in_time(rank, tmp_path):
    process, pids = start_training(tmp_path, "device.timeout_minutes=0.3")
    os.kill(pids[rank], signal.SIGSTOP)
    code, _, err = wait(process)
    prefix = "" if rank else "rank 1: "
    reason = "a rank has not answered for 0.3 minutes (device.timeout_minutes)"
    assert code == 9
    assert err == f"vggexp: error: {prefix}{reason}\n"
    assert have_ended(pids)
    assert result(tmp_path, "run.name=x")["state"] == "interrupted"


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process, pids = start_training(tmp_path)
    os.kill(pids[1], signal.SIGSTOP)  # so that the ranks do not stop at the first signal
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(1)
    code, _, err = wait(process, 25)
    assert code == 130
    assert err == "vggexp: stopped at once\n"
    assert have_ended(pids)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_a_killed_rank_is_one_line(rank, tmp_path, check_continues):
    process, pids = start_training(tmp_path, command=TORCHRUN_VGGEXP)
    os.kill(pids[rank], signal.SIGKILL)
    code, _, err = wait(process)
    prefix = "" if rank else "rank 1: "
    reason = "a rank has ended before the others; run the same command to continue"
    assert code == 1
    assert have_ended(pids)
    assert reports(err) == [f"vggexp: error: {prefix}{reason}"]
    check_continues(TORCHRUN_VGGEXP)


@pytest.mark.slow
def test_another_number_of_ranks_continues_if_resume_allows(tmp_path):
    process, pids = start_training(tmp_path, command=TORCHRUN_VGGEXP)
    os.kill(pids[0], signal.SIGTERM)
    wait(process)
    code, _, err = wait(start(tmp_path, *LONG, "run.name=x", "resume=exact"))
    assert code == 4
    assert "resume=exact: not the same machine (processes 2 -> 1)" in err
    code, out, _ = wait(start(tmp_path, *LONG, "run.name=x"))
    assert code == 0
    assert "warning: continuing, but perhaps not bit-identical: processes 2 -> 1" in out
