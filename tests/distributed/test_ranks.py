"""Several ranks: what each takes, what they tell one another, and whole runs of them as real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn
from torch.nn import functional

from tests.conftest import TINY, write_pictures
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_name
from vggexp.data.loaders import InMemoryLoader, StreamingLoader
from vggexp.data.transforms import Augment, Preprocess
from vggexp.distributed import collectives, stop
from vggexp.distributed.rank import RankInfo, rank_info, slurm_env
from vggexp.errors import ConfigError, RankError
from vggexp.models.layers import BatchNorm2d, synchronize
from vggexp.sweep.expand import compose_run
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint, checkpoint_manager
from vggexp.training.loop import TrainState
from vggexp.training.metrics import MetricSums

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CPU = torch.device("cpu")
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
]
LONG += ["arch.width=0.2", "train.epochs=3", "device.threads=1", "train.checkpoint_minutes=0.02"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ALONE = [*TORCHRUN, "--standalone"]
DOOR = [sys.executable, "-m", "vggexp"]


# What each rank takes


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, RankInfo()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, RankInfo(3, 4, 1)),
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            RankInfo(),
        ),  # an sbatch script, not a task of srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, RankInfo()),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "n[07-08]",
            },
            RankInfo(3, 4, 1),
        ),
    ],
)
def test_a_rank_knows_its_place(variables, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_info() == expected


@pytest.mark.parametrize(
    ("nodes", "tasks", "own", "host", "threads"),
    [
        ("a1", "2", {"SLURM_CPUS_PER_TASK": "6"}, "a1", "6"),
        ("gpu[003-005,7],other", "4(x3),2", {"SLURM_CPUS_PER_TASK": "8"}, "gpu003", "8"),
        ("a-1,b[2-3]", "1000(x3)", {}, "a-1", "1"),
    ],
)
def test_srun_is_understood(nodes, tasks, own, host, threads):
    step = {
        "SLURM_STEP_NUM_TASKS": "6",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "12",
        **own,
    }
    told = slurm_env({**step, "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks})
    assert (told["MASTER_ADDR"], told["OMP_NUM_THREADS"]) == (host, threads)
    others = [
        slurm_env({**step, "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_ID": number})
        for number in ("0", "1")
    ]
    assert len({told["MASTER_PORT"] for told in others}) == 2  # two steps of a job do not meet


def of_all_ranks(size, take, monkeypatch):
    """What each rank takes, in the order of the ranks."""
    taken = []
    for rank in range(size):
        monkeypatch.setattr(
            collectives, "_STATE", collectives.ProcessGroupState(RankInfo(rank, size))
        )
        taken.append(list(take()))
    return taken


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_the_ranks_share_each_batch(kind, size, monkeypatch, tmp_path):
    """41 pictures in batches of 8: the last has one. Each rank meets its pictures as one process would."""
    facts = {"batch_size": 8, "device": CPU, "augment": Augment(flip=0.5, crop=2, erase=0.5)}
    preprocess = Preprocess(16, torch.tensor([0.5] * 3), torch.tensor([0.2] * 3))
    if kind == "resident":
        images = torch.randint(0, 256, (41, 3, 20, 20), dtype=torch.uint8)
        batches = InMemoryLoader(images, torch.arange(41), preprocess, **facts)
    else:
        write_pictures(tmp_path, {"train": 20, "test": 1}, lambda index: (20, 20 + index), "png")
        paths = sorted(tmp_path.rglob("*.png"))[:41]
        batches = StreamingLoader(paths, range(len(paths)), preprocess, workers=0, **facts)
    alone = list(batches.train(1, start=2))
    ranks = of_all_ranks(size, lambda: batches.train(1, start=2), monkeypatch)
    for (images, labels), *parts in zip(alone, *ranks, strict=True):
        for rank, (mine, known) in enumerate(parts):
            assert torch.equal(mine, images[rank::size]) and torch.equal(known, labels[rank::size])
    seen = [
        label
        for taken in of_all_ranks(size, batches.evaluate, monkeypatch)
        for _, part in taken
        for label in part
    ]
    assert sorted(map(int, seen)) == list(range(batches.count))  # each picture once


def test_the_name_of_a_run_knows_typed_processes_only():
    def name(*words):
        return run_name(compose_run(parse_command([*TINY, *words])))

    assert name() == name("device.processes=1") == name("device.timeout_minutes=3")
    assert (
        len(
            {
                name(),
                name("device.processes=2"),
                name("device.processes=2", "device.sync_batch_norm=false"),
            }
        )
        == 3
    )


# What they tell one another


def agree(rank, port, folder):
    """One of two ranks; a failed assertion fails the test."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    with collectives.process_group("cpu", 1):
        assert (collectives.rank(), collectives.world_size()) == (rank, 2)
        assert (
            collectives.run_on_rank_zero(lambda: rank + 7) == 7
            and collectives.all_reduce_max(rank) == 1
        )
        assert collectives.all_reduce_sum(torch.tensor([1.0, rank])).tolist() == [2, 1]
        whole = [(torch.tensor([number]),) for number in range(5)]
        assert collectives.gather_interleaved(whole[collectives.rank_slice()]) == whole
        collectives.assert_same_on_all_ranks({"seed": 1}, "")
        with pytest.raises(RankError, match=r"rank 1 is not as rank 0: seed 0 -> 1; give one"):
            collectives.assert_same_on_all_ranks({"seed": rank, "lr": 1}, "give one")
        with pytest.raises(ConfigError, match="only rank 0 knows"):
            collectives.run_on_rank_zero(refuse)
        with pytest.raises(
            RankError, match=r"rank 1 is not as rank 0: weights .*; they have drifted apart"
        ):
            checkpoint_manager.DistributedCheckpointManager(
                stop.DistributedStop(StopFlag()), None
            ).save(state_of(nn.Linear(1, 1).requires_grad_(False), rank))
        for counts in ((5, 3), (4, 0)):
            norm_is_that_of_the_whole_batch(rank, counts)
        assert collectives.should_report_error("one") is (rank == 0)
        collectives.all_reduce_max(0)  # rank 0 keeps the store
    Path(folder, str(rank)).touch()


def state_of(model, weight):
    """Of a run whose only weight is this."""
    model.weight.fill_(weight), model.bias.zero_()
    return TrainState(model, None, None, None, None, MetricSums(CPU))


def refuse():
    raise ConfigError("only rank 0 knows")


def norm_is_that_of_the_whole_batch(rank, counts):
    whole = torch.randn(sum(counts), 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 5
    mine = whole.split(counts)[rank].clone().requires_grad_()
    whole = whole.requires_grad_()
    shared, plain = BatchNorm2d(3), nn.BatchNorm2d(3)
    synchronize(shared)
    functional.silu(plain(whole)).sum().backward()
    functional.silu(shared(mine)).sum().backward()
    assert torch.allclose(mine.grad, whole.grad.split(counts)[rank], atol=1e-5)
    assert torch.allclose(
        collectives.all_reduce_sum(shared.weight.grad), plain.weight.grad, rtol=1e-4
    )
    for name, buffer in plain.named_buffers():
        assert torch.allclose(shared.get_buffer(name), buffer, atol=1e-5), name


def test_what_two_ranks_tell_one_another(tmp_path):
    multiprocessing.spawn(agree, (free_port(), str(tmp_path)), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


# Whole runs


def start(folder, *words, front=DOOR, **variables):
    return subprocess.Popen(
        [*front, *words],
        cwd=folder,
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def ran(folder, *words, front=DOOR, **variables):
    """Ended well and said nothing on stderr; the result."""
    code, out, err = done(start(folder, *words, front=front, **variables))
    assert code == 0 and (err == "" or front is not DOOR), (out, err)
    return result(folder, *words)


def result(folder, *words):
    name = next(word.partition("=")[2] for word in words if word.startswith("run.name="))
    return json.loads((folder / "outputs" / name / "result.json").read_text())


def weights(folder, name):
    path = sorted((folder / "outputs" / name / "checkpoints").glob("*.pt"))[-1]
    return checkpoint.weights_of(checkpoint.load(path))


def apart(folder, one, other):
    """The largest difference of two runs' weights."""
    there = weights(folder, other)
    return max(
        (value.float() - there[name].float()).abs().max().item()
        for name, value in weights(folder, one).items()
    )


def test_two_ranks_are_one_and_two_again(tmp_path):
    one = ran(tmp_path, *EXACT, "run.name=one")
    two = ran(tmp_path, *EXACT, "run.name=two", "device.processes=2")
    assert 0 < apart(tmp_path, "one", "two") < 1e-5  # the sums have another order
    assert two["test/loss"] == pytest.approx(one["test/loss"], abs=1e-5)
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
def test_any_number_of_ranks_is_one(name, tmp_path):
    words, tolerance = EQUAL[name]
    ran(tmp_path, *EXACT, *words, "run.name=r1")
    for ranks in ("2", "3"):
        if (ranks, name) != ("3", "batch norm"):  # three do not halve a micro-batch as one does
            ran(tmp_path, *EXACT, *words, f"run.name=r{ranks}", f"device.processes={ranks}")
            assert apart(tmp_path, "r1", f"r{ranks}") < tolerance


def in_slurm(rank):
    """The variables of a task of srun."""
    return {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }


@pytest.mark.slow
def test_however_the_ranks_are_started_the_bits_are_the_same(tmp_path):
    words = [*TINY, "arch.norm=batch"]
    mine = [ran(tmp_path, *words, f"run.name={name}", "device.processes=2") for name in "ab"]
    torchrun = ran(tmp_path, *words, "run.name=t", front=[*ALONE, "-m", "vggexp"])
    meet = [
        "--nnodes",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"localhost:{free_port()}",
        "-m",
        "vggexp",
    ]
    nodes = [*TORCHRUN[:3], "--nproc-per-node", "1", *meet]
    machines = [
        start(tmp_path, *words, "run.name=n", front=nodes, OMP_NUM_THREADS="1") for _ in range(2)
    ]
    assert [done(machine)[0] for machine in machines] == [0, 0]
    tasks = [start(tmp_path, *words, "run.name=s", **in_slurm(rank)) for rank in (0, 1)]
    assert [done(task)[0] for task in tasks] == [0, 0]
    others = [result(tmp_path, f"run.name={name}") for name in "ns"]
    assert len({one["weights_sha256"] for one in (*mine, torchrun, *others)}) == 1
    code, out, _ = done(start(tmp_path, *words, "run.name=t", front=[*ALONE, "-m", "vggexp"]))
    assert (code, out.count("already finished")) == (0, 1)


@pytest.mark.slow
def test_ranks_inside_a_sweep(tmp_path):
    words = [*TINY, "device.processes=2", "seed=0,1"]
    assert done(start(tmp_path, "-m", *words))[0] == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/result.json")]
    alone = ran(
        tmp_path, *TINY, "device.processes=2", "seed=1", "run.name=alone", OMP_NUM_THREADS="2"
    )
    assert [one["state"] for one in results] == ["finished"] * 2
    assert alone["weights_sha256"] in {one["weights_sha256"] for one in results}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["optimizer.lr=0.0$((RANK+1))"],
            "rank 1 is not as rank 0: optimizer.lr 0.01 -> 0.02; start all with",
        ),
        (
            ["seed=$((RANK+1))", "train.ema=0.9"],
            "rank 1 is not as rank 0: seed 1 -> 2; start all with the same",
        ),
        (
            ["data=image_folder", "data.root=d$RANK", "data.resize=32"],
            "rank 1 is not as rank 0: train ",
        ),
        (["data.batch_size=$((32-32*RANK))"], "data.batch_size=0: must be 1..65536"),
        (
            ["-m", "seed=0,1"],
            "-m: each of the 2 ranks would run the whole sweep; start it once, without torchrun",
        ),
        (["device.processes=3"], "device.processes=3: 2 have been started; leave it out"),
    ],
)
def test_ranks_that_differ_are_refused(words, said, tmp_path):
    for number, count in enumerate((8, 9)):
        write_pictures(
            tmp_path / f"d{number}", {"train": count, "test": 8}, lambda index: (40, 40), "png"
        )
    folder = [word for word in words if word.startswith("data=")]
    base = [
        word
        for word in TINY
        if not folder or not word.startswith(("data=", "data.images", "data.size"))
    ]
    base = [
        word.replace("32", "4") if word.startswith("data.batch_size") and folder else word
        for word in base
    ]
    line = " ".join([*DOOR, *base, "run.name=x", *words])
    code, _, err = done(start(tmp_path, "--no-python", "bash", "-c", line, front=ALONE))
    told = [text for text in err.splitlines() if text.startswith("vggexp:")]
    assert (
        code
        and len(told) == 1
        and told[0].removeprefix("vggexp: error: ").removeprefix("rank 1: ").startswith(said)
    ), err
    assert not (tmp_path / "outputs").exists()
    assert re.search(r"exitcode *: (9|2) ", err)


# Faults


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("plain"), *LONG, "run.name=x", "device.processes=2")[
        "weights_sha256"
    ]


def under_way(folder, *words, front=DOOR):
    """A run of two ranks that has told its first epoch, and the pids of its ranks."""
    words = (*LONG, "run.name=x", *words, *(["device.processes=2"] if front is DOOR else []))
    process = start(folder, *words, front=front)
    next(line for line in process.stdout if line.startswith("epoch 1/3"))
    time.sleep(0.3)
    return process, ranks_of(process.pid)


def ranks_of(pid):
    found = Path(f"/proc/{pid}/task").glob("*/children")
    pids = sorted(int(child) for listed in found for child in listed.read_text().split())
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid in pids if b"spawn_main" in words[pid] or b"vggexp" in words[pid]]


def gone(pids):
    """Within a few seconds. One that nobody waits for stays as a zombie."""
    for _ in range(100):
        stats = [Path(f"/proc/{pid}/stat") for pid in pids]
        if all(
            not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
            for stat in stats
        ):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_the_same_command_continues_it(rank, tmp_path, undisturbed):
    process, pids = under_way(tmp_path)
    os.kill(pids[rank], signal.SIGKILL)
    told = f"rank {rank} was killed by SIGKILL"
    code, _, err = done(process)
    assert (code, err) == (
        9,
        f"vggexp: error: {told}; run the same command to continue\n",
    ) and gone(pids)
    ended = result(tmp_path, "run.name=x")
    assert (ended["state"], ended["error"], ended["exit_code"]) == ("interrupted", told, 9)
    again = ran(tmp_path, *LONG, "run.name=x", "device.processes=2")
    assert again["weights_sha256"] == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_stop_reaches_the_ranks(number, code, tmp_path, undisturbed):
    process, pids = under_way(tmp_path)
    os.kill(process.pid, getattr(signal, number))
    ended, _, err = done(process)
    assert ended == code and gone(pids)
    assert re.fullmatch(
        rf"vggexp: stopped by {number} at epoch \d batch \d+: run the same command to continue\n",
        err,
    )
    assert result(tmp_path, "run.name=x")["exit_code"] == code
    assert ran(tmp_path, *LONG, "run.name=x", "device.processes=2")["weights_sha256"] == undisturbed


@pytest.mark.slow
def test_one_rank_hears_a_stop_for_all(tmp_path, undisturbed):
    process, pids = under_way(tmp_path)
    os.kill(pids[1], signal.SIGTERM)
    assert done(process)[0] == 143 and gone(pids)
    assert ran(tmp_path, *LONG, "run.name=x", "device.processes=2")["weights_sha256"] == undisturbed


@pytest.mark.slow
def test_no_rank_outlives_its_starter(tmp_path, undisturbed):
    process, pids = under_way(tmp_path)
    process.kill()
    assert process.wait(240) == -9 and gone(pids)
    assert result(tmp_path, "run.name=x")["state"] == "interrupted"  # and has saved
    assert ran(tmp_path, *LONG, "run.name=x", "device.processes=2")["weights_sha256"] == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank_ends_the_run_in_time(rank, tmp_path):
    process, pids = under_way(tmp_path, "device.timeout_minutes=0.3")
    os.kill(pids[rank], signal.SIGSTOP)
    code, _, err = done(process)
    who = "" if rank else "rank 1: "
    line = f"vggexp: error: {who}a rank has not answered for 0.3 minutes (device.timeout_minutes)\n"
    assert (code, err) == (9, line) and gone(pids)
    assert result(tmp_path, "run.name=x")["state"] == "interrupted"


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process, pids = under_way(tmp_path)
    os.kill(pids[1], signal.SIGSTOP)  # so that the first one is waited for
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(1)
    assert done(process, 25)[::2] == (130, "vggexp: stopped at once\n") and gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_a_killed_rank_is_told_in_a_line_and_the_run_continues(
    rank, tmp_path, undisturbed
):
    front = [*ALONE, "-m", "vggexp"]
    process, pids = under_way(tmp_path, front=front)
    os.kill(pids[rank], signal.SIGKILL)
    code, _, err = done(process)
    told = [line for line in err.splitlines() if line.startswith("vggexp:")]
    who = "" if rank else "rank 1: "
    assert code == 1 and gone(pids)
    assert told == [
        f"vggexp: error: {who}a rank has ended before the others; run the same command to continue"
    ]
    assert ran(tmp_path, *LONG, "run.name=x", front=front)["weights_sha256"] == undisturbed


@pytest.mark.slow
def test_another_number_of_ranks_continues_where_resume_allows(tmp_path):
    process, pids = under_way(tmp_path, front=[*ALONE, "-m", "vggexp"])
    os.kill(pids[0], signal.SIGTERM)
    done(process)
    code, _, err = done(start(tmp_path, *LONG, "run.name=x", "resume=exact"))
    assert code == 4 and "resume=exact: not the same machine (processes 2 -> 1)" in err
    code, out, _ = done(start(tmp_path, *LONG, "run.name=x"))
    assert (
        code == 0 and "warning: continuing, but perhaps not bit-identical: processes 2 -> 1" in out
    )
