"""Reads run directories of version 0.1.0 as it stood before the package had packages.

`data/runs-0.1.0.tar.gz` holds a finished run, and one that SIGTERM interrupted in the middle of
its second epoch. Both are the same training but for their names.
"""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import result
from tools.release import unpack
from vggexp.runner.hardware import device_name
from vggexp.training import checkpoint

ARCHIVE = Path(__file__).parent / "data" / "runs-0.1.0.tar.gz"
WEIGHTS_SHA256 = "0f317fda1a183f45a4ca2a883e3feb73be56d046ecd958a701256cabd6806338"


def overrides(name: str) -> list[str]:
    """The command that made the run, as the run recorded it."""
    return Path("outputs", name, "overrides.txt").read_text().splitlines()


def is_recording_machine() -> bool:
    """Whether this machine computes the bits of the one that recorded the archive."""
    recorded = json.loads(Path("outputs/finished/env.json").read_text())
    current = {
        "device_name": device_name(torch.device("cpu")),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    same_torch = recorded["versions"]["torch"] == str(torch.__version__).partition("+")[0]
    return same_torch and all(recorded[key] == value for key, value in current.items())


@pytest.fixture
def run(command):
    """Runs a command in a folder that holds the archived runs."""
    unpack(ARCHIVE, Path())
    return command


def main_of(module: str):
    return __import__(f"vggexp.{module}.__main__", fromlist=["main"]).main


def test_a_finished_run_is_finished(run):
    code, output, error = run(*overrides("finished"))
    assert (code, error) == (0, "")
    assert output.startswith("already finished: test accuracy 0.1016")


def test_an_interrupted_run_continues(run):
    code, output, error = run(*overrides("interrupted"))
    assert (code, error) == (0, "")
    assert "continued after step 25: 1 epoch and 7 batches" in output
    assert "numerics 1 -> 2" in output
    lines = Path("outputs/interrupted/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_the_events_of_an_interrupted_run_are_written_again(run):
    run(*overrides("interrupted"))
    events = EventAccumulator("outputs/interrupted", size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"accuracy/train", "accuracy/test", "step/loss"} <= tags
    assert not {tag for tag in tags if tag.startswith(("train/", "val/", "test/", "best/"))}
    assert [point.step for point in events.Scalars("loss/train")] == [1, 2, 3]


def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(run):
    if not is_recording_machine():
        pytest.skip("another processor or torch computes other bits")
    assert run(*overrides("interrupted"))[0] == 0
    assert result("interrupted")["weights_sha256"] == WEIGHTS_SHA256


def test_weights_keep_their_hash(run):
    saved = checkpoint.load(Path("outputs/finished/checkpoints/00000054.pt"))
    assert checkpoint.weights_sha256(checkpoint.select_eval_weights(saved)) == WEIGHTS_SHA256


@pytest.mark.parametrize("module", ["verify", "evaluate", "report"])
def test_commands_take_it(run, module):
    if module == "verify" and not is_recording_machine():
        pytest.skip("another processor or torch computes other bits")
    assert main_of(module)(["outputs/finished"]) == 0


def test_export_takes_it(run):
    assert main_of("export")(["outputs/finished", "--format", "torch"]) == 0
    assert Path("outputs/finished/exports").is_dir()
