"""Tests what a run records: its checkpoints, the tested weights, and how it ended."""

import signal

import pytest

from vggexp.config.compose import parse_command
from vggexp.errors import DivergedError, StoppedError
from vggexp.runner import banner
from vggexp.runner.run import run
from vggexp.runs.directory import read_result
from vggexp.sweep.expand import compose_run
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint
from vggexp.training.checkpoint_manager import find_checkpoints

SMALLEST = ["device=cpu", "data=synthetic", "data.images=24", "data.classes=2", "data.size=8"]
SMALLEST += ["data.batch_size=8", "arch.blocks=[[1,4]]", "arch.hidden=[8]", "train.epochs=2"]
SMALLEST += ["device.threads=1", "run.name=a"]


@pytest.fixture
def train(tmp_path):
    """train("key=value", ...) trains in this process; returns the run directory."""

    def run_one(*overrides, stop=None):
        argv = [*SMALLEST, f"run.root={tmp_path}", *overrides]
        run(compose_run(parse_command(argv)), argv, stop or StopFlag())
        return tmp_path / "a"

    return run_one


def steps(folder):
    return sorted(int(path.stem) for path in find_checkpoints(folder / "checkpoints"))


@pytest.mark.parametrize(("minutes", "expected"), [(0, [1, 2, 3, 4, 5, 6]), (60, [3, 6])])
def test_checkpoints_inside_an_epoch_come_after_the_configured_minutes(train, minutes, expected):
    folder = train(f"train.checkpoint_minutes={minutes}", "train.keep=all")
    assert steps(folder) == expected


def test_the_best_weights_are_tested(train):
    """Such a low rate changes the weights, but no prediction: the first epoch stays the best."""
    folder = train("optimizer.lr=1e-6", "train.test_weights=best", "train.epochs=3")
    result = read_result(folder)
    assert (result["best/epoch"], result["step"], result["weights_step"]) == (1, 9, 3)
    digests = {}
    for path in find_checkpoints(folder / "checkpoints"):
        weights = checkpoint.select_eval_weights(checkpoint.load(path))
        digests[int(path.stem)] = checkpoint.weights_sha256(weights)
    assert len(set(digests.values())) == 3
    assert result["weights_sha256"] == digests[3]


EXPLODING = ["data.batch_size=22", f"arch.hidden={[64] * 12}", "optimizer.lr=100"]
EXPLODING += ["optimizer=adam", "train.epochs=1", "device.precision=fp32"]


def test_a_run_whose_test_loss_is_not_finite_has_diverged(train, tmp_path):
    """The only step is finite, and the network that it leaves is not."""
    with pytest.raises(DivergedError, match=r"the test loss is not finite with the weights of epo"):
        train(*EXPLODING)
    result = read_result(tmp_path / "a")
    assert (result["state"], result["exit_code"]) == ("failed", 5)
    assert not (tmp_path / "a" / "predictions.npz").exists()


def test_clipping_is_not_advised_again(train):
    with pytest.raises(DivergedError, match=r"try optimizer\.lr=10$"):
        train(*EXPLODING, "train.clip_norm=1")


def test_the_same_command_says_again_that_the_test_loss_is_not_finite(train):
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"try optimizer\.lr=10 or train\.clip_norm=1"):
            train(*EXPLODING)


class StopInTheFirstEpoch(StopFlag):
    def check(self, position: str) -> None:
        if position.startswith("at epoch 1"):
            self.signal = signal.SIGTERM
        super().check(position)


def test_a_stopped_run_is_interrupted_and_not_failed(train, tmp_path):
    with pytest.raises(StoppedError):
        train(stop=StopInTheFirstEpoch())
    result = read_result(tmp_path / "a")
    assert (result["state"], result["exit_code"]) == ("interrupted", 143)


def test_an_interruption_after_the_result_leaves_the_run_finished(train, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(banner, "end_banner", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert read_result(tmp_path / "a")["state"] == "finished"
