"""Whole runs, as a user starts them."""

import csv
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vggexp
from tests.conftest import TINY, result
from vggexp.training import checkpoint

EVERYTHING = [
    *TINY,
    "arch.norm=batch",
    "augment=strong",
    "train.ema=0.9",
    "train.clip_norm=1",
    "train.accumulate=2",
    "train.label_smoothing=0.1",
    "scheduler=cosine",
    "scheduler.warmup_epochs=0.5",
]
TIMES = [
    f"time/{part}_seconds"
    for part in "epoch data copy compute optimizer evaluation checkpoint logging".split()
]


def rows(name):
    return [
        json.loads(line)
        for line in (Path("outputs") / name / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_leaves_a_directory_that_agrees_with_itself(command):
    code, out, err = command(*TINY, "run.name=a", "seed=3")
    assert (code, err) == (0, "")
    folder = Path("outputs/a")
    known = {
        path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents")
    }
    files = "config.yaml overrides.txt env.json metrics.jsonl result.json predictions.npz checkpoints run.log .lock"
    assert known == set(files.split())
    metrics = rows("a")
    scores = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    assert [list(row) for row in metrics] == [
        ["epoch", "step", "lr", *scores, "images_per_second", *TIMES]
    ] * 2
    assert [row["epoch"] for row in metrics] == [1, 2]
    end = result("a")
    assert (end["state"], end["epoch"], end["step"]) == ("finished", 2, 6)
    assert end["val/accuracy"] == metrics[-1]["val/accuracy"]
    saved = checkpoint.load(folder / "checkpoints" / "00000006.pt")
    assert checkpoint.weights_sha256(checkpoint.weights_of(saved)) == end["weights_sha256"]
    with numpy.load(folder / "predictions.npz") as kept:
        assert (kept["scores"].argmax(1) == kept["labels"]).mean() == pytest.approx(
            end["test/accuracy"]
        )
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert (folder / "overrides.txt").read_text().split() == [*TINY, "run.name=a", "seed=3"]
    environment = json.loads((folder / "env.json").read_text())
    assert environment["threads"] == 1 and set(environment["data"]) == {"train", "test"}
    assert (
        environment["device"] == "cpu"
        and environment["device_name"]
        and "torch" in environment["versions"]
    )
    parts = [sum(row[key] for row in metrics) for key in TIMES]
    assert all(end[key] >= part for key, part in zip(["seconds", *TIMES[1:]], parts, strict=True))
    assert (
        end["time/evaluation_seconds"] > parts[TIMES.index("time/evaluation_seconds")]
    )  # the test is in it
    assert sum(end[key] for key in TIMES[1:]) <= end["seconds"]
    assert (folder / "run.log").read_text() == out


def test_tensorboard_shows_the_record(command):
    command(*TINY, "run.name=a")
    events = EventAccumulator("outputs/a", size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for key in rows("a")[0].keys() - {"epoch", "step"}:
        assert [(point.step, point.value) for point in events.Scalars(key)] == [
            (row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows("a")
        ]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(result("a")["test/accuracy"])
    assert set(events.Tags()["images"]) == {
        "images/first_batch",
        "test/confusion",
        "test/worst_mistakes",
    }
    assert events.Tags()["graph"]


def test_the_same_command_gives_the_same_bits(command):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert command(*EVERYTHING, f"run.name={name}", f"seed={seed}")[0] == 0
    assert (
        result("a")["weights_sha256"]
        == result("b")["weights_sha256"]
        != result("c")["weights_sha256"]
    )
    timed = {"images_per_second", *TIMES}
    same = [[{key: row[key] for key in row.keys() - timed} for row in rows(name)] for name in "ab"]
    assert same[0] == same[1]


def test_a_finished_run_answers_at_once_and_changes_nothing(command):
    command(*TINY)
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}
    code = "import sys; from vggexp.__main__ import main; end = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    again = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(end)", *TINY], capture_output=True, text=True
    )
    assert (again.returncode, again.stdout[:16], again.stderr) == (0, "already finished", "")
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")} == before
    assert command(*TINY, "resume=never")[0] == 0
    assert len([path for path in Path("outputs").iterdir() if path.name.endswith("-2")]) == 1


MORE = ["scheduler=step", "scheduler.milestones=[1]"]


def test_more_epochs_continue_a_named_run(command):
    for name, epochs in (("a", 2), ("b", 4), ("a", 4)):
        assert command(*TINY, *MORE, f"run.name={name}", f"train.epochs={epochs}")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]
    assert [row["epoch"] for row in rows("a")] == [1, 2, 3, 4]
    code, _, err = command(*TINY, *MORE, "run.name=a", "train.epochs=3")
    assert code == 4 and "train.epochs: run has 4, command says 3" in err
    command(*TINY, "scheduler=cosine", "run.name=c")
    code, _, err = command(*TINY, "scheduler=cosine", "run.name=c", "train.epochs=4")
    assert code == 4 and "train.epochs: run has 2, command says 4" in err
    assert (
        command(*TINY, *MORE, "run.name=a", "train.epochs=5", "optimizer.lr=0.02", "resume=force")[
            0
        ]
        == 0
    )


def test_what_a_run_keeps(command):
    kept = {
        "all": ["00000003", "00000006"],
        "last": ["00000003", "00000006"],
        "weights": ["00000006"],
    }
    for keep, names in kept.items():
        command(*TINY, f"train.keep={keep}", f"run.name={keep}")
        assert sorted(path.stem for path in Path("outputs", keep, "checkpoints").iterdir()) == names
        assert vggexp.load_run(Path("outputs", keep)).model is not None
    code, _, err = command(*TINY, "train.keep=weights", "run.name=weights", "train.epochs=3")
    assert code == 4 and "kept only its weights" in err


def test_damaged_checkpoints_are_set_aside(command):
    command(*TINY, "run.name=a")
    whole = result("a")["weights_sha256"]
    folder = Path("outputs/a/checkpoints")

    def spoil(name):
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / name).write_bytes(raw)
        Path("outputs/a/result.json").unlink()

    spoil("00000006.pt")
    code, out, _ = command(*TINY, "run.name=a")
    assert (
        code == 0
        and out.count("set aside as 00000006.corrupt") == 1
        and "continued after step 3" in out
    )
    assert result("a")["weights_sha256"] == whole
    spoil("00000006.pt")
    (folder / "00000003.pt").write_bytes(b"")
    code, _, err = command(*TINY, "run.name=a")
    assert code == 4 and "no checkpoint verifies; start over with resume=never" in err


def test_the_name_of_another_run_is_refused(command):
    command(*TINY, "run.name=a")
    code, _, err = command(*TINY, "run.name=a", "optimizer.lr=0.02", "seed=7")
    assert code == 4
    assert (
        "optimizer.lr: run has 0.01, command says 0.02" in err
        and "seed: run has 0, command says 7" in err
    )
    assert err.count("\n") == 1


def changed(name, **facts):
    """As if the run's last process had been killed before its end, with these facts in its checkpoints."""
    folder = Path("outputs") / name
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("*.pt"):
        checkpoint.save(path, checkpoint.load(path) | facts)


def test_other_data_is_refused(command):
    command(*TINY, "run.name=a")
    changed("a", data={"train": "0" * 64, "test": "1" * 64})
    code, _, err = command(*TINY, "run.name=a")
    assert (
        code == 4
        and "the data has changed since this run began (test, train)" in err
        and err.count("\n") == 1
    )
    code, out, _ = command(*TINY, "run.name=a", "resume=force")
    assert code == 0 and "warning: continuing, but the data has changed: test, train" in out


@pytest.mark.parametrize("fact", ["torch", "threads", "device_name", "cpu_capability", "precision"])
def test_another_machine_is_refused_where_exactness_is_asked_for(command, fact):
    command(*TINY, "run.name=a")
    changed("a", **{fact: 9 if fact == "threads" else "other"})
    code, _, err = command(*TINY, "run.name=a", "resume=exact", "device.threads=1")
    assert (
        code == 4 and f"resume=exact: not the same machine ({fact} " in err and err.count("\n") == 1
    )
    code, out, _ = command(*TINY, "run.name=a", "device.threads=1")
    assert code == 0 and f"perhaps not bit-identical: {fact} " in out


def test_a_directory_in_use_is_left_alone(command):
    folder = Path("outputs/a")
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("elsewhere pid 12")
        lock.flush()
        code, _, err = command(*TINY, "run.name=a")
    assert code == 8 and "in use by elsewhere pid 12" in err
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_divergence_ends_with_its_place(command):
    code, _, err = command(*TINY, "optimizer.lr=100", "arch.init=paper", "run.name=a")
    assert code == 5
    assert "not finite at epoch 1 batch" in err and "with lr 100" in err and err.count("\n") == 1
    assert (result("a")["state"], result("a")["exit_code"]) == ("failed", 5)
    assert not list(Path("outputs/a").glob("checkpoints/*"))


def test_missing_data_is_told_before_anything_is_written(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = command("data.root=empty", "data.download=false")
    assert code == 3 and "empty" in err and "dataset-fashion-mnist" in err and err.count("\n") == 1
    assert not Path("outputs").exists()


@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_sweep_runs_all_and_ends_with_a_table(command, launcher):
    axes = [
        "-m",
        f"hydra/launcher={launcher}",
        "arch=vgg11,vgg13",
        "optimizer.lr=0.01,100",
        "arch.init=paper",
    ]
    code, out, err = command(*TINY, *axes)
    told = (out if launcher == "local" else err).count("the loss or its gradient is not finite")
    assert (
        code == 7
        and told == (4 if launcher == "local" else 2)
        and "2 of 4 jobs did not finish" in err
    )
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 6 and table[0].split()[1:4] == ["arch", "|", "optimizer.lr"]
    assert [("finished" in line, "failed" in line) for line in table[2:]] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    with open(next(Path("outputs/sweeps").glob("*/results.csv"))) as file:
        kept = list(csv.DictReader(file))
    assert {(row["arch"], row["optimizer.lr"]) for row in kept} == {
        (arch, lr) for arch in ("vgg11", "vgg13") for lr in ("0.01", "100")
    }
    for row in kept[:2]:
        assert float(row["val/accuracy"]) == result(row["run"])["val/accuracy"]
    again = command(*TINY, *axes)
    finished = "before   2 of 4 jobs finished" if launcher == "local" else "already finished"
    assert (
        again[0] == 7 and finished in again[1] and "sweep.retry_failed=true tries again" in again[1]
    )


def test_a_run_in_a_notebook_gives_the_recorded_scores(command):
    command(*TINY, "run.name=a", "device.precision=fp32", "train.test_weights=best")
    run = vggexp.load_run("outputs/a")
    from vggexp.data.datasets import synthetic_dataset

    images = synthetic_dataset(96, 10, 1, 32).test.images
    with torch.inference_mode():
        scores = run.model(run.preprocess(images)).softmax(1).numpy()
    kept = max(rows("a"), key=lambda row: row["val/accuracy"])
    assert (
        result("a")["val/accuracy"] == kept["val/accuracy"]
        and result("a")["best/epoch"] == kept["epoch"]
    )
    assert (
        not run.model.training
        and run.config.data.images == 96
        and run.classes == tuple("0123456789")
    )
    numpy.testing.assert_allclose(
        scores, numpy.load("outputs/a/predictions.npz")["scores"], atol=1e-5
    )


@pytest.mark.debian
def test_fashion_mnist_learns(command):
    code, out, _ = command(
        "data.resize=32",
        "data.limit=4000",
        "arch.width=0.25",
        "arch.hidden=[128]",
        "train.epochs=3",
        "run.name=a",
    )
    losses = [row["train/loss"] for row in rows("a")]
    assert code == 0 and losses == sorted(losses, reverse=True)
    assert result("a")["test/accuracy"] > 0.6
    assert "3,600 images, 400 for validation, 10,000 for the test" in out


@pytest.mark.debian
def test_the_twin_of_the_source_run(command):
    small = [
        "data.limit=480",
        "arch.width=0.05",
        "data.resize=32",
        "train.epochs=2",
        "device.threads=1",
    ]
    code, out, _ = command("experiment=gluon_vgg11", *small, "run.name=a")
    config = vggexp.load_run("outputs/a").config
    assert code == 0 and "480 images, 10,000 for the test" in out
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == (
        "SGD",
        0.01,
        0,
    )
    assert (
        config.optimizer.arguments == {}
        and config.scheduler.name == "constant"
        and config.arch.init == "xavier"
    )
    assert all("test/accuracy" in row and "val/loss" not in row for row in rows("a"))
    assert vggexp.load_run("outputs/a").preprocess.mean is None
