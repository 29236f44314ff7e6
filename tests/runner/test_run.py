"""Tests whole runs: the directory that they leave, their bits, and a second start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, result
from vggexp.loggers.tensorboard import scalar_tag
from vggexp.runs.steps import read_steps
from vggexp.training import checkpoint

pytestmark = pytest.mark.process
ALL_OPTIONS = [
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
PARTS = ["data", "copy", "compute", "optimizer", "evaluation", "checkpoint", "logging"]
TIMES = [f"time/{part}_seconds" for part in ("epoch", *PARTS)]
FILES = [
    "config.yaml",
    "overrides.txt",
    "env.json",
    "metrics.jsonl",
    "steps.jsonl",
    "result.json",
    "predictions.npz",
    "checkpoints",
    "run.log",
    ".lock",
]


def metrics(name):
    lines = (Path("outputs") / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def modification_times():
    return {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}


def test_a_run_leaves_a_consistent_directory(command):
    code, out, err = command(*TINY, "run.name=a", "seed=3")
    assert (code, err) == (0, "")
    folder = Path("outputs/a")
    names = [path.name for path in folder.iterdir()]
    files = [name for name in names if not name.startswith("events.out.tfevents")]
    assert sorted(files) == sorted(FILES)
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert (folder / "overrides.txt").read_text().split() == [*TINY, "run.name=a", "seed=3"]
    assert (folder / "run.log").read_text() == out
    environment = json.loads((folder / "env.json").read_text())
    assert environment["threads"] == 1
    assert set(environment["data"]) == {"train", "test"}
    assert environment["device"] == "cpu"
    assert environment["device_name"]
    assert "torch" in environment["versions"]


def test_the_metrics_and_the_result_of_a_run_agree(command):
    assert command(*TINY, "run.name=a", "seed=3")[0] == 0
    folder = Path("outputs/a")
    rows = metrics("a")
    scores = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    columns = ["epoch", "step", "lr", *scores, "images_per_second", *TIMES]
    assert [list(row) for row in rows] == [columns] * 2
    assert [row["epoch"] for row in rows] == [1, 2]
    fields = result("a")
    assert (fields["state"], fields["epoch"], fields["step"]) == ("finished", 2, 6)
    assert fields["val/accuracy"] == rows[-1]["val/accuracy"]
    newest = checkpoint.load(folder / "checkpoints" / "00000006.pt")
    weights = checkpoint.select_eval_weights(newest)
    assert checkpoint.weights_sha256(weights) == fields["weights_sha256"]
    with numpy.load(folder / "predictions.npz") as predictions:
        correct = predictions["scores"].argmax(1) == predictions["labels"]
    assert correct.mean() == pytest.approx(fields["test/accuracy"])


def test_the_times_of_a_run_add_up(command):
    assert command(*TINY, "run.name=a")[0] == 0
    fields = result("a")
    epochs = {key: sum(row[key] for row in metrics("a")) for key in TIMES}
    assert fields["seconds"] >= epochs["time/epoch_seconds"]
    for key in TIMES[1:]:
        assert fields[key] >= epochs[key]
    # The evaluation of the test set comes after the last epoch.
    assert fields["time/evaluation_seconds"] > epochs["time/evaluation_seconds"]
    assert sum(fields[key] for key in TIMES[1:]) <= fields["seconds"]


def test_tensorboard_shows_the_record(command):
    command(*TINY, "run.name=a")
    events = EventAccumulator("outputs/a", size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    rows = metrics("a")
    for key in rows[0].keys() - {"epoch", "step"}:
        points = events.Scalars(scalar_tag(key))
        assert [point.step for point in points] == [row["epoch"] for row in rows]
        values = [row[key] for row in rows]
        assert [point.value for point in points] == pytest.approx(values, rel=1e-6)
    assert events.Scalars("accuracy/test")[0].value == pytest.approx(result("a")["test/accuracy"])
    images = {"train/first_batch", "test/confusion", "test/worst_mistakes"}
    assert set(events.Tags()["images"]) == images
    assert events.Tags()["graph"]


def test_tensorboard_shows_the_test_at_the_epoch_of_the_tested_weights(command):
    """Such a low rate changes no prediction: the first epoch stays the best."""
    command(*TINY, "run.name=a", "optimizer.lr=1e-6", "train.test_weights=best")
    assert result("a")["best/epoch"] == 1
    events = EventAccumulator("outputs/a", size_guidance={"images": 0})
    events.Reload()
    assert [point.step for point in events.Scalars("accuracy/test")] == [1]
    assert [image.step for image in events.Images("test/confusion")] == [1]


def test_tensorboard_shows_the_curves_inside_the_epochs(command):
    command(*TINY, "run.name=a", "train.log_steps=2")
    rows = read_steps(Path("outputs/a"))
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4), (2, 6)]
    events = EventAccumulator("outputs/a", size_guidance={"scalars": 0})
    events.Reload()
    for key in ("loss", "accuracy", "lr", "gradient_norm"):
        points = [(point.step, point.value) for point in events.Scalars(f"step/{key}")]
        assert points == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]


def test_the_curves_change_no_bit(command):
    for name, log_steps in (("a", 0), ("b", 1), ("c", "null")):
        assert command(*TINY, f"run.name={name}", f"train.log_steps={log_steps}")[0] == 0
    hashes = {result(name)["weights_sha256"] for name in "abc"}
    assert len(hashes) == 1
    assert not Path("outputs/a/steps.jsonl").exists()


def test_the_same_command_gives_the_same_bits(command):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert command(*ALL_OPTIONS, f"run.name={name}", f"seed={seed}")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]
    assert result("a")["weights_sha256"] != result("c")["weights_sha256"]
    first, second = metrics("a"), metrics("b")
    for row in (*first, *second):
        for key in ("images_per_second", *TIMES):
            del row[key]
    assert first == second


def test_a_finished_run_is_reported_at_once_and_stays_as_it_is(command):
    command(*TINY)
    before = modification_times()
    code = (
        "import sys; from vggexp.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "-c", code, *TINY], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0
    assert process.stdout.startswith("already finished")
    assert process.stderr == ""
    assert modification_times() == before
    assert command(*TINY, "resume=never")[0] == 0
    assert len(list(Path("outputs").glob("*-2"))) == 1


def test_a_divergence_names_its_position(command):
    code, _, err = command(*TINY, "optimizer.lr=100", "arch.init=paper", "run.name=a")
    assert code == 5
    assert "not finite at epoch 1 batch" in err
    assert "with lr 100" in err
    assert err.count("\n") == 1
    assert (result("a")["state"], result("a")["exit_code"]) == ("failed", 5)
    assert list(Path("outputs/a").glob("checkpoints/*")) == []
