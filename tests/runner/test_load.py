"""Tests load_run: a run in a notebook gives the recorded predictions."""

import contextlib
import copy
import importlib
import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import vggexp
from tests.conftest import TINY, result
from tests.factories import make_checkpoint
from vggexp.config.compose import parse_command
from vggexp.data.datasets import synthetic_dataset
from vggexp.errors import CheckpointError
from vggexp.runner.build import build_state
from vggexp.runner.hardware import DeviceSetup
from vggexp.runner.load import build_loaded_run, check_tested
from vggexp.sweep.expand import compose_outline, run_config
from vggexp.training import checkpoint, checkpoint_schema


@pytest.mark.process
def test_a_loaded_run_gives_the_recorded_predictions(command):
    command(*TINY, "run.name=a", "device.precision=fp32", "train.test_weights=best")
    run = vggexp.load_run("outputs/a")
    images = synthetic_dataset(96, 10, 1, 32).test.images
    with torch.inference_mode():
        probs = run.model(run.preprocess(images)).softmax(1).numpy()
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val/accuracy"])
    assert result("a")["val/accuracy"] == best["val/accuracy"]
    assert result("a")["best/epoch"] == best["epoch"]
    assert not run.model.training
    assert run.config.data.images == 96
    assert run.classes == tuple("0123456789")
    recorded = numpy.load("outputs/a/predictions.npz")["scores"]
    numpy.testing.assert_allclose(probs, recorded, atol=1e-5)


WRONG = [None, True, -1, 0.5, "", [], ["x"] * 10, {}, torch.zeros(3), torch.full((1,), torch.nan)]
TESTED_FIELDS = [("net",), ("weights",), ("ema",), ("ema", "module"), ("classes",), ("classes", 0)]
TESTED_FIELDS += [("mean",), ("std",), ("data",), ("threads",), ("precision",), ("device",)]


@pytest.fixture
def config():
    overrides = [*TINY, "train.ema=0.9"]
    command = parse_command(overrides)
    return run_config(command, compose_outline(command))


def content_of(config) -> dict:
    """A checkpoint at the start of the run."""
    cpu = torch.device("cpu")
    setup = DeviceSetup(cpu, "fp32", 1, contextlib.nullcontext)
    facts = {"classes": list("0123456789")}
    return make_checkpoint(build_state(config, setup, steps_per_epoch=3)) | facts


def load(config, content):
    checkpoint_schema.check_content(content)
    check_tested(config, content)
    run = build_loaded_run(config, content, Path("a"))
    return run.model(run.preprocess(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)))


def test_wrong_fields_are_refused_or_leave_the_weights_as_they_are(config):
    content = content_of(config)
    expected = load(config, content)
    for key, *inner in TESTED_FIELDS:
        for value in WRONG:
            wrong = copy.deepcopy(content)
            if inner:
                wrong[key][inner[0]] = value
            else:
                wrong[key] = value
            try:
                logits = load(config, wrong)
            except (ValueError, CheckpointError):
                continue
            assert logits.shape == expected.shape, (key, value)


REFUSALS = {
    "net is None, expected a dictionary": {"net": None},
    "batch is -1, expected a whole number of 0..1000000000000": {"batch": -1},
    "epoch is 1000000000, expected a whole number of 0..100000": {"epoch": 10**9},
    r"optimizer is '\x1b[2J', expected a dictionary": {"optimizer": "\x1b[2J"},
    "0.0.0.weight is missing": {"net": {"\n": torch.zeros(10)}},
}


@pytest.mark.process
def test_every_reader_refuses_what_no_run_writes(command, capfd):
    command(*TINY, "run.name=a")
    Image.new("L", (32, 32)).save("image.png")
    readers = {
        "evaluate": ["outputs/a"],
        "verify": ["outputs/a"],
        "export": ["outputs/a", "--format", "torch"],
        "predict": ["outputs/a", "image.png"],
    }
    contents = {path: checkpoint.load(path) for path in Path("outputs/a/checkpoints").iterdir()}
    for reason, fields in REFUSALS.items():
        for path, content in contents.items():
            checkpoint.save(path, content | fields)
        results = []
        for name, argv in readers.items():
            main = importlib.import_module(f"vggexp.{name}.__main__").main
            results.append((main(argv), capfd.readouterr().err))
        Path("outputs/a/result.json").rename("result.json")
        results.append(command(*TINY, "run.name=a")[::2])
        Path("result.json").rename("outputs/a/result.json")
        for code, error in results:
            assert code == 4
            assert error.count("\n") == 1
            assert reason in error
