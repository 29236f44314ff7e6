"""Tests the loaders of a run: a folder of images in each cache, and shipped data sets."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import vggexp
from tests.conftest import result, write_images
from tests.data.torchvision_files import write_torchvision
from vggexp.config.compose import parse_command
from vggexp.data import workers
from vggexp.data.datasets import load_dataset
from vggexp.evaluate.__main__ import main as evaluate_main
from vggexp.runner import datasets
from vggexp.runner.datasets import build_loaders
from vggexp.sweep.expand import compose_run
from vggexp.system import signals
from vggexp.verify.__main__ import main as verify_main

pytestmark = pytest.mark.process


def metrics(name):
    lines = (Path("outputs") / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_a_run_on_a_folder_of_images(command, tmp_path, cache):
    counts = {"train": 10, "val": 3}
    write_images(tmp_path / "images", counts, lambda index: (40 + index, 50), "jpg")
    overrides = [
        "data=image_folder",
        "data.resize=32",
        "data.batch_size=4",
        f"data.cache={cache}",
        "arch=vgg_digits",
    ]
    code, out, err = command(
        *overrides,
        "data.root=images",
        "data.workers=1",
        "augment=scale_jitter",
        "train.epochs=1",
    )
    assert (code, err) == (0, "")
    assert "18 images, 2 for validation, 6 for the test" in out
    (tmp_path / "images").rename(tmp_path / "moved")
    run = vggexp.load_run(next((tmp_path / "outputs").glob("vgg*")))
    assert run.classes == ("cat", "dog")
    logits = run.model(run.preprocess(torch.zeros(1, 3, 50, 40)))
    assert logits.shape == (1, 2)
    code, _, err = command(*overrides, "data.root=moved", "data.classes=3")
    assert code == 3
    assert "2 classes, but data.classes=3" in err


def test_a_run_on_class_folders_keeps_its_test_set(command, tmp_path, capfd):
    write_images(tmp_path / "images", {".": 10}, lambda index: (32, 32), "png")
    folder = ["data=image_folder", "data.resize=32", "data.batch_size=4", "data.workers=0"]
    folder += ["arch=lenet", "run.name=a"]
    code, out, err = command(*folder, "data.root=images", "train.epochs=1")
    assert (code, err) == (0, "")
    assert (
        "data     image_folder  14 images, 2 for validation, 4 for the test  (images; no test"
        in out
    )
    (tmp_path / "images").rename(tmp_path / "moved")
    code, out, err = command(*folder, "data.root=moved", "data.test_fraction=0.2", "train.epochs=2")
    assert (code, err) == (0, "")
    assert "continued after step 4" in out
    assert evaluate_main(["outputs/a", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["test/accuracy"] == result("a")["test/accuracy"]
    assert verify_main(["outputs/a"]) == 0


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.batch_size=19"], "data.batch_size=19: more than the 18 training images; choose 18"),
        (
            ["data.batch_size=4", "data.limit=5", "data.val_fraction=0.2"],
            "data.val_fraction=0.2: 1 validation images for 2 classes; at least one each, or 0",
        ),
    ],
)
def test_a_folder_with_too_few_images_is_refused(command, tmp_path, overrides, problem):
    write_images(tmp_path / "images", {"train": 10, "test": 2}, lambda index: (32, 32), "png")
    folder = ["data=image_folder", "data.root=images", "data.resize=32", "data.workers=0"]
    code, _, err = command(*folder, "arch=vgg_digits", "train.epochs=1", *overrides)
    assert (code, err) == (2, f"vggexp: error: {problem}\n")
    assert not (tmp_path / "outputs").exists()


def test_an_image_that_cannot_be_decoded_is_one_line(command, tmp_path):
    write_images(tmp_path / "images", {"train": 10, "test": 2}, lambda index: (32, 32), "png")
    for path in (tmp_path / "images").glob("train/*/*.png"):
        path.write_bytes(b"text")
    folder = ["data=image_folder", "data.root=images", "data.resize=32", "data.workers=0"]
    code, out, err = command(*folder, "arch=vgg_digits", "train.epochs=1", "data.batch_size=4")
    assert code == 3
    assert err.endswith(".png: not an image\n")
    assert "warning" not in out


def test_the_digits_of_scikit_learn(command):
    code, out, err = command("experiment=quickstart", "train.epochs=3", "device.threads=1")
    assert (code, err) == (0, "")
    assert "360 for the test" in out


def test_missing_data_is_reported_before_anything_is_written(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = command("data.root=empty", "data.download=false")
    assert code == 3
    assert "empty" in err
    assert "dataset-fashion-mnist" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.debian
def test_fashion_mnist_is_learned(command):
    code, out, _ = command(
        "data.resize=32",
        "data.limit=4000",
        "arch.width=0.125",
        "arch.hidden=[128]",
        "train.epochs=3",
        "run.name=a",
    )
    assert code == 0
    assert "3,600 images, 400 for validation, 10,000 for the test" in out
    rows = metrics("a")
    losses = [row["train/loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert result("a")["test/accuracy"] > 0.6


@pytest.mark.debian
def test_the_experiment_of_the_source_run(command):
    small = [
        "data.limit=480",
        "data.test_limit=200",
        "arch.width=0.05",
        "data.resize=32",
        "train.epochs=2",
        "device.threads=1",
    ]
    code, out, _ = command("experiment=gluon_vgg11", *small, "run.name=a")
    run = vggexp.load_run("outputs/a")
    optimizer = run.config.optimizer
    assert code == 0
    assert "480 images, 200 for the test" in out
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("SGD", 0.01, 0)
    assert optimizer.arguments == {}
    assert run.config.scheduler.name == "constant"
    assert run.config.arch.init == "xavier"
    assert run.preprocess.mean is None
    for row in metrics("a"):
        assert "test/accuracy" in row
        assert "val/loss" not in row


@pytest.mark.parametrize("name", ["KMNIST", "Food101"])
def test_a_run_on_a_data_set_of_torchvision(command, tmp_path, monkeypatch, capfd, name):
    write_torchvision(name, tmp_path / "data", monkeypatch)
    overrides = ["data=torchvision", f"data.name={name}", "data.resize=32", "data.batch_size=4"]
    overrides += ["arch=lenet", "data.workers=0", "data.val_fraction=0.5", "run.name=a"]
    code, out, err = command(*overrides, "data.root=data", "train.epochs=1")
    assert (code, err) == (0, "")
    expected = "12 images, 12 for validation, 12 for the test"
    assert f"data     {name}  {expected}  ({tmp_path}/data)\n" in out
    (tmp_path / "data").rename(tmp_path / "moved")
    assert evaluate_main(["outputs/a", "--data", "moved", "--json"]) == 0
    evaluated = json.loads(capfd.readouterr().out)
    assert evaluated["test/accuracy"] == result(tmp_path / "outputs/a")["test/accuracy"]
    code, out, _ = command(*overrides, "data.root=moved", "train.epochs=1")
    assert (code, out[:16]) == (0, "already finished")
    classes = vggexp.load_run(tmp_path / "outputs/a").classes
    environment = json.loads((tmp_path / "outputs/a/env.json").read_text())
    assert tuple(environment["classes"]) == classes


def test_a_usual_run_imports_no_torchvision(tmp_path):
    """Nor do composing and planning, also those of a data set of torchvision that is counted."""
    program = """
import sys, vggexp
vggexp.compose("data=torchvision", "data.name=SVHN")
counts = "data.classes=10", "data.train_images=73257", "data.test_images=26032"
vggexp.plan("data=torchvision", "data.name=SVHN", *counts)
assert "torch" not in sys.modules
vggexp.run("data=digits", "data.resize=32", "arch=lenet", "train.epochs=1", "device=cpu")
print(sorted({"torchvision", "scipy.io"} & {*sys.modules}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command_line = [sys.executable, "-c", program]
    process = subprocess.run(
        command_line, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout.splitlines()[-1:] == ["[]"], process.stderr


def test_the_jobs_of_a_sweep_can_be_forked_from_the_process_that_counts_the_images(tmp_path):
    """With threads of OpenMP in that process, the jobs would wait for ever."""
    overrides = ["data=torchvision", "data.name=FakeData", "+data.image_size=[3,32,32]"]
    overrides += ["+data.size=400", "arch=lenet", "train.epochs=1", "seed=1,2", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["OMP_NUM_THREADS"] = "2"
    process = subprocess.run(
        [sys.executable, "-m", "vggexp", "-m", *overrides],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert len(list(tmp_path.glob("outputs/lenet-FakeData-*/result.json"))) == 2


def test_a_stop_signal_ends_a_run_whose_disk_hangs(command, tmp_path, monkeypatch):
    def wait_for_disk(path, channels=3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(workers, "read_image", wait_for_disk)
    write_images(tmp_path / "images", {"train": 10, "test": 2}, lambda index: (32, 32), "png")
    folder = ["data=image_folder", "data.root=images", "data.resize=32", "data.workers=0"]
    argv = [*folder, "arch=vgg_digits", "train.epochs=1", "data.batch_size=4", "run.name=a"]
    code, _, error = command(*argv)
    reason = "stopped by SIGTERM while an image was read: run the same command to continue"
    assert (code, error) == (143, f"vggexp: {reason}\n")


def test_the_whole_training_set_is_freed(monkeypatch):
    whole = []

    def load(*arguments):
        splits = load_dataset(*arguments)
        whole.append(weakref.ref(splits.train.images))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = compose_run(parse_command(["data=digits", "arch.blocks=[[1,8]]"]))
    data = build_loaders(config, torch.device("cpu"))
    assert whole[0]() is None
    assert data.test_images(torch.tensor([0])).shape == (1, 1, 8, 8)
