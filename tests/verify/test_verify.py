"""Trains the last stretch of a run again, and detects a single changed bit."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, write_epochs
from vggexp.config.compose import parse_command
from vggexp.runs.records import run_dir
from vggexp.sweep.expand import compose_run
from vggexp.training import checkpoint
from vggexp.verify import replay
from vggexp.verify.__main__ import main

OVERRIDES = [
    "arch.norm=batch",
    "train.ema=0.9",
    "augment=strong",
    "optimizer=adam",
    "scheduler=plateau",
]

pytestmark = pytest.mark.process


def modification_times() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}


def test_a_run_verifies_until_a_bit_is_changed(command, capfd):
    command(*TINY, *OVERRIDES, "run.name=a")
    before = modification_times()
    assert main(["outputs/a"]) == 0
    assert capfd.readouterr().out.startswith("identical: steps 3 to 6 run again, ")
    assert modification_times() == before
    path = Path("outputs/a/checkpoints/00000006.pt")
    content = checkpoint.load(path)
    content["ema"]["module"]["0.1.0.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    checkpoint.save(path, content)
    assert main(["outputs/a", "--json"]) == 4
    result = json.loads(capfd.readouterr().out)
    keys = ["run", "identical", "from_step", "to_step", "tensors", "first_difference"]
    assert list(result) == keys
    assert result["identical"] is False
    assert result["first_difference"] == "ema.module.0.1.0.weight"


def test_a_run_verifies_up_to_a_position_inside_an_epoch(command, capfd):
    command(*TINY, "train.checkpoint_minutes=0", "train.keep=all", "run.name=a")
    Path(
        "outputs/a/checkpoints/00000006.pt"
    ).unlink()  # the last epoch now ends at its second batch
    assert main(["outputs/a"]) == 0
    assert capfd.readouterr().out.startswith("identical: steps 4 to 5 run again, ")


def test_a_run_of_resume_exact_verifies_on_another_machine(command, capfd):
    command(*TINY, "resume=exact", "run.name=a")
    for path in Path("outputs/a/checkpoints").iterdir():
        checkpoint.save(path, checkpoint.load(path) | {"device_name": "another"})
    assert main(["outputs/a"]) == 0
    assert (
        "warning: continuing, but perhaps not bit-identical: device_name" in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 6, "out of memory in verifying {run}"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_what_ends_a_replay_is_one_line(error, code, message, tmp_path, monkeypatch, capfd):
    def fail(folder, data):
        raise error

    config = compose_run(parse_command([*TINY, f"run.root={tmp_path}"]))
    write_epochs(config, [0.5])
    run = str(run_dir(config))
    monkeypatch.setattr(replay, "replay", fail)
    assert main([run]) == code
    assert capfd.readouterr().err == f"vggexp: error: {message.format(run=run)}\n"


def test_runs_that_cannot_be_verified(command, capfd):
    command(*TINY, "train.keep=weights", "run.name=a")
    assert main(["outputs/a"]) == 4
    assert "needs two checkpoints, has 1 (it keeps only its weights)" in capfd.readouterr().err
    command(*TINY, "train.epochs=1", "run.name=b")
    assert main(["outputs/b"]) == 4
    assert "needs two checkpoints, has 1 (a run of one epoch leaves one)" in capfd.readouterr().err
    assert main(["outputs/none"]) == 2
    assert main([]) == 2
    assert main(["outputs/a", "--nosuch"]) == 2
    assert main(["outputs"]) == 4
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("vggexp: error: ") for line in lines)
