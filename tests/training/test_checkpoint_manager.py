"""Which checkpoints stay, when the next one is due, and what a folder refuses."""

import os
import time

import pytest

from tests.factories import make_state
from vggexp.errors import ResourceError
from vggexp.training.checkpoint_manager import (
    CheckpointManager,
    check_disk_space,
    find_checkpoints,
)


@pytest.fixture
def make_manager(tmp_path):
    return lambda keep="last", minutes=10.0: CheckpointManager(tmp_path, keep, minutes, {})


def save_epochs(manager, accuracies):
    """Saves an epoch of three steps for each accuracy; returns the steps that stay."""
    state = make_state()
    for epoch, accuracy in enumerate(accuracies, 1):
        state.step = 3 * epoch
        state.history.append({"epoch": epoch, "step": state.step, "val/accuracy": accuracy})
        manager.save(state)
    return [int(path.stem) for path in find_checkpoints(manager.folder)]


def test_the_newest_two_and_the_best_stay(make_manager):
    assert save_epochs(make_manager(), [0.5, 0.9, 0.6, 0.9, 0.7]) == [15, 12, 6]


def test_all_stay_on_request(make_manager):
    assert save_epochs(make_manager("all"), [0.5, 0.4, 0.3, 0.2]) == [12, 9, 6, 3]


def test_the_newest_is_that_of_the_last_step_whatever_the_times_of_the_files(make_manager):
    manager = make_manager()
    save_epochs(manager, [0.5] * 4)
    os.utime(manager.path(12), (0, 0))
    assert find_checkpoints(manager.folder)[0] == manager.path(12)


def test_a_checkpoint_is_due_some_minutes_after_the_last(make_manager, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manager = make_manager(minutes=5)
    assert not manager.is_due()
    now = 300.0
    assert manager.is_due()
    manager.save(make_state())
    assert not manager.is_due()
    now = 599.0
    assert not manager.is_due()
    now = 600.0
    assert manager.is_due()


def test_the_rest_of_a_killed_write_is_removed(make_manager, tmp_path):
    (tmp_path / "00000003.pt.tmp").write_bytes(b"half")
    make_manager()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused(tmp_path):
    check_disk_space(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"B free, checkpoints need 1\.100 EB; "):
        check_disk_space(tmp_path, 10**18)
