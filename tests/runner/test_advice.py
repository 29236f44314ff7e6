"""Tests the advice at the end of a run: it names only keys that would shorten the run."""

import pytest

from vggexp.config.compose import parse_command
from vggexp.runner.advice import time_advice
from vggexp.sweep.expand import compose_run
from vggexp.training.timer import PARTS

FOLDER = ["data=image_folder", "data.root=.", "data.classes=2", "data.workers=0"]


def advice(part, *overrides, seconds=600.0):
    """Returns the advice of a run of 4 epochs, most of whose time went into one part."""
    config = compose_run(parse_command(["device=cpu", *overrides]))
    result = {"seconds": seconds, "epoch": 4, "test_images": 10_000}
    for name in (*PARTS, "test", "startup", "rest"):
        result[f"time/{name}_seconds"] = 0.0
    # What comes in addition to `seconds` is 80 % of the whole as well.
    result[f"time/{part}_seconds"] = (4 if part in ("startup", "rest") else 0.8) * seconds
    if part == "test":
        result["time/evaluation_seconds"] = 0.8 * seconds
    return time_advice(config, result)


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("part", "overrides", "remedy"),
    [
        ("data", FOLDER, "data.cache=ram or data.workers above 0"),
        ("data", [*FOLDER, "train.epochs=1"], "data.workers above 0"),
        ("data", ["device=cuda", "data.cache=ram"], "data.cache=device"),
        ("evaluation", ["train.test_each_epoch=true"], "train.test_each_epoch=false"),
        ("test", [], "data.test_limit below 10000"),
        (
            "test",
            ["train.test_flip=true", "train.test_shift=1"],
            "train.test_flip=null or train.test_shift=null or data.test_limit below 10000",
        ),
        ("checkpoint", ["train.checkpoint_minutes=2"], "train.checkpoint_minutes above 2"),
        ("rest", ["train.rest_minutes=5"], "train.rest_minutes below 5"),
        ("startup", [*FOLDER, "data.cache=ram"], "data.workers above 0"),
    ],
)
def test_a_key_that_helps_is_named(part, overrides, remedy):
    name = "start-up" if part == "startup" else part
    assert advice(part, *overrides) == [f"advice   80 % of the time is {name}; try {remedy}"]
    assert advice(part, *overrides, seconds=10.0) == []  # a short run


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("data", []),  # in memory: no worker and no cache takes part
        ("data", [*FOLDER, "data.cache=ram"]),
        ("copy", []),
        ("compute", []),
        ("optimizer", []),
        ("logging", []),
        ("evaluation", ["data.val_fraction=0.5"]),  # in training an image takes longer
        ("checkpoint", ["train.checkpoint_minutes=5"]),  # only those at the end of an epoch
        ("startup", []),
        ("startup", FOLDER),
    ],
)
def test_no_key_is_named_if_none_helps(part, overrides):
    assert advice(part, *overrides) == []
