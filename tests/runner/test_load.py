"""Tests load_run: a run in a notebook gives the recorded predictions."""

import json
from pathlib import Path

import numpy
import pytest
import torch

import vggexp
from tests.conftest import TINY, result
from vggexp.data.datasets import synthetic_dataset


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


def test_the_package_exposes_load_run():
    names = {}
    exec("from vggexp import *", names)
    assert names["load_run"] is vggexp.load_run
    assert names["__version__"] == vggexp.__version__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = vggexp.nosuch
