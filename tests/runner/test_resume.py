"""Tests continued runs: more epochs, damaged checkpoints, other data, another machine."""

import fcntl
import json
from pathlib import Path

import pytest
import torch

import vggexp
from tests.conftest import TINY, result
from vggexp.evaluate.__main__ import main as evaluate
from vggexp.export.__main__ import main as export
from vggexp.training import checkpoint

pytestmark = pytest.mark.process
STEP = ["scheduler=step", "scheduler.milestones=[1]"]  # does not depend on the number of epochs


def interrupt(name, **fields):
    """Leaves a run as if it had been killed, with these fields in its checkpoints."""
    folder = Path("outputs") / name
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("*.pt"):
        checkpoint.save(path, checkpoint.load(path) | fields)


def result_of_test(command, *overrides):
    """Returns the test accuracy and loss of a run that only has to be tested."""
    assert command(*TINY, "run.name=a", *overrides)[0] == 0
    return result("a")["test/accuracy"], result("a")["test/loss"]


def test_more_epochs_continue_a_named_run(command):
    for name, epochs in (("a", 2), ("b", 4), ("a", 4)):
        assert command(*TINY, *STEP, f"run.name={name}", f"train.epochs={epochs}")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]
    lines = Path("outputs/a/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    code, _, err = command(*TINY, *STEP, "run.name=a", "train.epochs=3")
    assert code == 4
    assert "train.epochs: run has 4, command says 3" in err
    command(*TINY, "scheduler=cosine", "run.name=c")
    code, _, err = command(*TINY, "scheduler=cosine", "run.name=c", "train.epochs=4")
    assert code == 4
    assert "train.epochs: run has 2, command says 4" in err
    forced = ["train.epochs=5", "optimizer.lr=0.02", "resume=force"]
    assert command(*TINY, *STEP, "run.name=a", *forced)[0] == 0


def test_the_checkpoints_that_a_run_keeps(command):
    expected = {
        "all": ["00000003", "00000006"],
        "last": ["00000003", "00000006"],
        "weights": ["00000006"],
    }
    for keep, names in expected.items():
        command(*TINY, f"train.keep={keep}", f"run.name={keep}")
        assert sorted(path.stem for path in Path("outputs", keep, "checkpoints").iterdir()) == names
        assert vggexp.load_run(Path("outputs", keep)).model is not None
    code, _, err = command(*TINY, "train.keep=weights", "run.name=weights", "train.epochs=3")
    assert code == 4
    assert "kept only its weights" in err


def test_damaged_checkpoints_are_set_aside(command):
    command(*TINY, "run.name=a")
    weights_sha256 = result("a")["weights_sha256"]
    folder = Path("outputs/a/checkpoints")

    def damage(name):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        Path("outputs/a/result.json").unlink()

    damage("00000006.pt")
    code, out, _ = command(*TINY, "run.name=a")
    assert code == 0
    assert out.count("set aside as 00000006.corrupt") == 1
    assert "continued after step 3" in out
    assert result("a")["weights_sha256"] == weights_sha256
    damage("00000006.pt")
    (folder / "00000003.pt").write_bytes(b"")
    code, _, err = command(*TINY, "run.name=a")
    assert code == 4
    assert "no checkpoint verifies; move the run's folder away to start over" in err


def test_the_name_of_another_run_is_refused(command):
    command(*TINY, "run.name=a")
    code, _, err = command(*TINY, "run.name=a", "optimizer.lr=0.02", "seed=7")
    assert code == 4
    assert "optimizer.lr: run has 0.01, command says 0.02" in err
    assert "seed: run has 0, command says 7" in err
    assert err.count("\n") == 1


def test_other_data_is_refused(command):
    command(*TINY, "run.name=a")
    interrupt("a", data={"train": "0" * 64, "test": "1" * 64})
    code, _, err = command(*TINY, "run.name=a")
    assert code == 4
    assert "the data has changed since this run began (test, train)" in err
    assert err.count("\n") == 1
    code, out, _ = command(*TINY, "run.name=a", "resume=force")
    assert code == 0
    assert "warning: continuing, but the data has changed: test, train" in out


@pytest.mark.parametrize("test_weights", ["last", "best"])
def test_after_other_data_is_forced_all_commands_take_the_new_data(command, test_weights):
    argv = [*TINY, "run.name=a", f"train.test_weights={test_weights}", "device.precision=fp32"]
    command(*argv)
    interrupt("a", data={"train": "0" * 64, "test": "1" * 64}, mean=torch.tensor([9.0]))
    assert command(*argv, "resume=force")[0] == 0
    assert evaluate(["outputs/a"]) == 0
    assert export(["outputs/a", "--format", "torch"]) == 0


@pytest.mark.parametrize(
    "field", ["torch", "threads", "device_name", "cpu_capability", "precision", "numerics"]
)
def test_resume_exact_refuses_another_machine(command, field):
    argv = [*TINY, "run.name=a"]
    command(*argv)
    other = {"threads": 9, "precision": "tf32", "numerics": 9}
    interrupt("a", **{field: other.get(field, "other")})
    code, _, err = command(*argv, "resume=exact", "device.threads=1")
    assert code == 4
    assert f"resume=exact: not the same machine ({field} " in err
    assert err.count("\n") == 1
    code, out, _ = command(*argv, "device.threads=1")
    assert code == 0
    assert f"perhaps not bit-identical: {field} " in out


def test_a_directory_in_use_stays_as_it_is(command):
    folder = Path("outputs/a")
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("elsewhere pid 12")
        lock.flush()
        code, _, err = command(*TINY, "run.name=a")
    assert code == 8
    assert "in use by elsewhere pid 12" in err
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_that_can_never_continue_has_failed(command):
    command(*TINY, "run.name=a", "run.until=1")
    for path in Path("outputs/a/checkpoints").iterdir():
        path.write_bytes(b"")
    code, _, err = command(*TINY, "run.name=a")
    assert code == 4
    assert (result("a")["state"], result("a")["exit_code"]) == ("failed", 4)
    assert f"vggexp: error: {result('a')['error']}\n" in err


def test_a_configuration_that_does_not_fit_is_no_loss_of_the_run(command):
    command(*TINY, "run.name=a", "run.until=1")
    code, _, err = command(*TINY, "run.name=a", "arch=vgg13", "resume=force")
    assert code == 4
    assert "checkpoints: does not fit this configuration: " in err
    assert result("a")["state"] == "paused"
    assert command(*TINY, "run.name=a")[0] == 0


def test_a_forced_number_of_micro_batches_is_taken_and_reported(command):
    command(*TINY, "run.name=a", "run.until=1")
    assert command(*TINY, "run.name=a", "train.accumulate=4", "resume=force")[0] == 0
    assert result("a")["micro_batches"] == 4
    warning = "warning: continuing, but train.accumulate: run has 1, command says 4\n"
    assert warning in Path("outputs/a/run.log").read_text()


def test_a_forced_average_and_a_forced_plateau_begin_where_the_run_continues(command):
    changes = ["train.ema=0.9", "scheduler=plateau", "resume=force"]
    command(*TINY, "run.name=a", "run.until=1")
    assert command(*TINY, "run.name=a", *changes)[0] == 0
    assert result("a")["state"] == "finished"


def test_a_forced_average_without_a_step_is_that_of_the_weights(command):
    command(*TINY, "run.name=a")
    interrupt("a")
    weights = result_of_test(command)
    interrupt("a")
    assert result_of_test(command, "train.ema=0.9", "resume=force") == weights
