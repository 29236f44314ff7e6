"""The last stretch of a run, run again."""

import json
from pathlib import Path

import torch

from tests.conftest import TINY
from vggexp.training import checkpoint
from vggexp.verify.__main__ import main

OWN = ["arch.norm=batch", "train.ema=0.9", "augment=strong", "optimizer=adam", "scheduler=plateau"]


def test_a_run_verifies_until_a_bit_is_changed(command, capfd):
    command(*TINY, *OWN, "run.name=a")
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}
    assert main(["outputs/a"]) == 0
    assert capfd.readouterr().out.startswith("identical: steps 3 to 6 run again, ")
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")} == before
    path = Path("outputs/a/checkpoints/00000006.pt")
    saved = checkpoint.load(path)
    saved["ema"]["module"]["0.1.0.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    checkpoint.save(path, saved)
    assert main(["outputs/a", "--json"]) == 4
    verdict = json.loads(capfd.readouterr().out)
    assert (verdict["identical"], verdict["first_difference"]) == (False, "ema.module.0.1.0.weight")


def test_what_cannot_be_verified(command, capfd):
    command(*TINY, "train.keep=weights", "run.name=a")
    assert main(["outputs/a"]) == 4
    assert "needs two checkpoints, has 1 (it keeps only its weights)" in capfd.readouterr().err
    assert main(["outputs/none"]) == main([]) == main(["outputs/a", "--nosuch"]) == 2
    assert main(["outputs"]) == 4
    assert all(line.startswith("vggexp: error: ") for line in capfd.readouterr().err.splitlines())
