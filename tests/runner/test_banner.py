"""Tests the lines before the first epoch and after the last."""

from pathlib import Path

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.runner.banner import end_banner
from vggexp.sweep.expand import compose_run
from vggexp.training.timer import PARTS

RESULT = {
    "epoch": 1,
    "seconds": 50.0,
    "test/accuracy": 0.5,
    "test/loss": 1.25,
    "test_images": 1,
    **{f"time/{part}_seconds": 0.0 for part in PARTS},
    "time/compute_seconds": 20.0,
    "time/evaluation_seconds": 30.0,
    "time/test_seconds": 25.0,
    "time/startup_seconds": 4.0,
    "time/rest_seconds": 0.1,
}


@pytest.mark.parametrize(
    ("overrides", "score"),
    [
        ([], "test accuracy 0.5000  loss 1.2500"),
        (
            ["train.test_flip=true"],
            "test accuracy 0.5000  loss 1.2500  with mirror images (train.test_flip)",
        ),
        (
            ["train.test_flip=true", "data.test_limit=1"],
            "test accuracy 0.5000  loss 1.2500  with mirror images (train.test_flip)  "
            "on 1 image (data.test_limit)",
        ),
        (
            ["train.test_flip=true", "train.test_shift=2"],
            "test accuracy 0.5000  loss 1.2500  "
            "with mirror images and shifts by 2 px (train.test_flip, train.test_shift)",
        ),
        (["data.test_limit=1"], "test accuracy 0.5000  loss 1.2500  on 1 image (data.test_limit)"),
    ],
)
def test_the_end_has_the_score_and_where_the_time_went(overrides, score):
    config = compose_run(parse_command([*TINY, *overrides]))
    assert end_banner(config, RESULT, Path("outputs/a")) == [
        score,
        "time     50.0 s in 1 epoch: compute 40 %, evaluation 10 %, test 50 %; 4.0 s of start-up",
        "folder   outputs/a",
        "show     python -m vggexp.tensorboard outputs/a",
    ]


@pytest.mark.process
def test_small_numbers_have_small_units(command):
    code, out, _ = command(*TINY, "train.epochs=1", "data.test_limit=12")
    assert code == 0
    network, data, training, device, folder = out.splitlines()[:5]
    assert network.endswith("  24,447 parameters  406.7 kMAC an image")
    assert ", 12 for the test (data.test_limit)  (" in data
    assert training == "training 1 epoch of 3 steps, batch 32, SGD lr 0.01"
    assert device.endswith("  1 thread")
    assert folder.endswith("  (checkpoints of 253.9 kB, 1.016 MB at most)")


@pytest.mark.process
@pytest.mark.parametrize(
    ("flip", "fraction", "end"),
    [
        (0.5, 0.5, " lr 0.01; images only flipped from epoch 2"),
        (0, 0.5, " lr 0.01; images unchanged from epoch 2"),
        (0.5, 0.1, " lr 0.01"),
    ],
)
def test_the_start_says_which_epochs_only_flip(command, flip, fraction, end):
    options = [*TINY, "train.epochs=2", "augment=strong", f"augment.flip={flip}", "run.until=1"]
    code, out, _ = command(*options, f"augment.flip_only_fraction={fraction}")
    assert code == 0
    assert out.splitlines()[2].endswith(end)
