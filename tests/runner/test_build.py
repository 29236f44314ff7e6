"""Tests that every file of conf/ becomes objects that train."""

from pathlib import Path

import pytest

from tests.conftest import TINY
from vggexp.config.device import conf_dir


def choices(group):
    """Returns an override for each file of a group."""
    return [f"{group}={path.stem}" for path in sorted((Path(conf_dir()) / group).glob("*.yaml"))]


@pytest.mark.process
@pytest.mark.parametrize(
    "choice",
    [
        *choices("arch"),
        *choices("augment"),
        *choices("optimizer"),
        *choices("scheduler"),
    ],
)
def test_a_choice_trains_an_epoch(command, choice):
    overrides = [choice, *TINY]
    if choice in ("arch=lenet", "arch=alexnet"):  # have no keys of their own
        overrides = [text for text in overrides if not text.startswith("arch.")]
    if choice == "arch=alexnet":
        overrides.append("data.resize=64")
    code, _, err = command(*overrides, "train.epochs=1")
    assert (code, err) == (0, "")
