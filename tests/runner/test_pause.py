"""Tests `run.until`: a run that pauses after an epoch, and continues to the bits of a whole run."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, result
from vggexp.__main__ import main
from vggexp.compare.__main__ import main as compare
from vggexp.evaluate.__main__ import main as evaluate
from vggexp.export.__main__ import main as export
from vggexp.predict.__main__ import main as predict
from vggexp.report.__main__ import main as report
from vggexp.training import checkpoint
from vggexp.verify.__main__ import main as verify
from vggexp.verify.replay import bitwise_equal, named_values

pytestmark = pytest.mark.process
FOUR = [*TINY, "train.epochs=4"]
SCHEDULES = {
    "constant": [],
    "cosine": ["scheduler=cosine", "scheduler.warmup_epochs=0.5"],
    "onecycle": ["scheduler=onecycle"],
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=1"],
    "flip_only": ["augment=strong", "augment.mixup=0.5", "augment.flip_only_fraction=0.5"],
    "ema": ["arch.norm=batch", "train.ema=0.9", "augment=flip"],
}


@pytest.fixture(scope="module")
def paused_after_two(tmp_path_factory):
    """The folder `outputs` of the run FOUR, run.name=a, paused after its second epoch."""
    folder = tmp_path_factory.mktemp("paused")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["vggexp"])
        assert main([*FOUR, "run.name=a", "run.until=2"]) == 0
    return folder / "outputs"


@pytest.fixture
def paused(command, paused_after_two):
    """As `command`, in a folder with a copy of the paused run."""
    shutil.copytree(paused_after_two, "outputs")
    return command


def checkpoints(name):
    return sorted(path.stem for path in Path("outputs", name, "checkpoints").glob("*.pt"))


def state_of(name, step):
    """Returns every tensor and number of a checkpoint that a repetition repeats."""
    content = checkpoint.load(Path("outputs", name, "checkpoints", f"{step:08d}.pt"))
    return dict(named_values(content))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_epoch_of_a_paused_run_has_the_bits_of_the_whole_run(command, schedule):
    options = [*FOUR, *SCHEDULES[schedule], "train.keep=all"]
    assert command(*options, "run.name=whole")[0] == 0
    for until in ("run.until=1", "run.until=3", "run.until=null"):
        assert command(*options, "run.name=paused", until)[0] == 0
    assert (
        checkpoints("paused")
        == checkpoints("whole")
        == ["00000003", "00000006", "00000009", "00000012"]
    )
    for step in (3, 6, 9, 12):
        expected = state_of("whole", step)
        actual = state_of("paused", step)
        assert expected.keys() == actual.keys()
        assert all(bitwise_equal(expected[name], actual[name]) for name in expected)
    assert result("paused")["weights_sha256"] == result("whole")["weights_sha256"]


def test_what_a_paused_run_leaves_and_prints(command):
    code, out, err = command(*FOUR, "run.name=a", "run.until=2")
    assert (code, err) == (0, "")
    assert "training 2 of 4 epochs of 3 steps" in out
    assert out.splitlines()[-3] == (
        "paused   after epoch 2 of 4; without run.until=2 the same command continues it"
    )
    fields = result("a")
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    assert (fields["state"], fields["error"]) == ("paused", None)
    assert (fields["epoch"], fields["step"]) == (2, 6)
    assert fields["val/accuracy"] == rows[-1]["val/accuracy"]
    assert "test/accuracy" not in fields
    assert checkpoints("a") == ["00000006"]
    assert not Path("outputs/a/predictions.npz").exists()


def test_a_paused_run_has_no_end_in_tensorboard_until_it_finishes(paused):
    ends = []
    for until in ("run.until=2", "run.until=null"):  # the first is there
        paused(*FOUR, "run.name=a", until)
        events = EventAccumulator("outputs/a")
        events.Reload()
        ends.append("_hparams_/session_end_info" in events.PluginTagToContent("hparams"))
        steps = [point.step for point in events.Scalars("accuracy/val")]
        assert steps == list(range(1, 3 + 2 * ends[-1]))
    assert ends == [False, True]


def test_a_run_that_has_so_many_epochs_is_left_as_it_is(paused):
    times = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}
    for until in (1, 2):
        code, out, err = paused(*FOUR, "run.name=a", f"run.until={until}")
        line = f"already paused: 2 of 4 epochs are done (run.until={until})  outputs/a\n"
        assert (code, out, err) == (0, line, "")
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")} == times
    paused(*FOUR, "run.name=a")
    assert paused(*FOUR, "run.name=a", "run.until=2")[1].startswith("already finished: ")


def test_until_is_no_part_of_a_run(command):
    command(*FOUR, "run.until=1")
    command(*FOUR, "run.until=4")
    assert len(list(Path("outputs").iterdir())) == 1
    assert result(next(Path("outputs").iterdir()).name)["state"] == "finished"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("run.until=5", "run.until=5: the run has train.epochs=4; at most 4"),
        ("run.until=0", "run.until=0: must be 1..100000 or null"),
        ("run.until=soon", "run.until=soon: not a whole number; must be 1..100000 or null"),
    ],
)
def test_a_wrong_epoch_is_refused(command, override, error):
    code, _, err = command(*FOUR, override)
    assert code == 2
    assert err == f"vggexp: error: {error}\n"
    assert not Path("outputs").exists()


def test_a_run_killed_before_its_pause_is_recorded_pauses(paused):
    Path("outputs/a/result.json").write_text('{"state": "running"}')
    assert paused(*FOUR, "run.name=a", "run.until=2")[0] == 0
    assert result("a")["state"] == "paused"


def test_a_run_that_stops_early_is_finished(command):
    options = [*FOUR, "train.patience=1", "optimizer.lr=1e-9", "run.name=a"]
    assert command(*options, "run.until=2")[0] == 0
    assert result("a")["state"] == "finished"
    assert result("a")["epoch"] == 2


def test_a_paused_run_keeps_the_checkpoint_that_will_be_tested(command):
    options = [*FOUR, "optimizer.lr=1e-9", "train.test_weights=best"]
    command(*options, "run.name=whole")
    command(*options, "run.name=a", "run.until=3")
    assert checkpoints("a") == ["00000003", "00000009"]  # no epoch is better than the first
    command(*options, "run.name=a")
    assert result("a")["weights_sha256"] == result("whole")["weights_sha256"]


def test_only_weights_are_kept_at_the_end_alone(command):
    command(*FOUR, "run.name=a", "run.until=2", "train.keep=weights")
    assert command(*FOUR, "run.name=a", "train.keep=weights")[0] == 0
    assert result("a")["state"] == "finished"


def test_a_new_run_of_resume_never_is_named_in_the_last_line(command):
    command(*FOUR, "run.name=a", "run.until=1")
    out = command(*FOUR, "run.name=a", "run.until=1", "resume=never")[1]
    assert "run.name=a-2 continues it, without resume=never and run.until" in out


def test_the_commands_know_a_paused_run(command, capfd):
    command(*FOUR, "run.name=a", "run.until=2", "train.keep=all")
    assert evaluate(["outputs/a"]) == 0
    out, err = capfd.readouterr()
    assert "warning: outputs/a is paused after epoch 2 of 4: using its newest checkpoint" in err
    assert "paused after epoch 2" in out
    assert Path("outputs/a/evaluations/single-32-epoch2.json").exists()
    assert verify(["outputs/a"]) == 0
    assert report(["outputs"]) == 0
    assert "| paused" in capfd.readouterr().out
    assert export(["outputs/a", "--format", "torch"]) == 4
    assert "outputs/a is paused; only finished runs can be exported" in capfd.readouterr().err
    shutil.copytree("outputs/a", "outputs/b")
    assert compare(["outputs/a", "outputs/b"]) == 4
    assert "outputs/a is paused, outputs/b is paused; only finished" in capfd.readouterr().err
    Image.new("L", (32, 32)).save("image.png")
    assert predict(["outputs/a", "image.png"]) == 0
    warning = "warning: outputs/a is paused after epoch 2 of 4: using its newest checkpoint"
    assert warning in capfd.readouterr().err


def test_the_command_that_a_refusal_suggests_ends_the_run(paused, capfd):
    assert export(["outputs/a", "--format", "torch"]) == 4
    _, _, suggested = capfd.readouterr().err.partition("; continue outputs/a with: ")
    words = shlex.split(suggested)
    assert words[:3] == ["python", "-m", "vggexp"]
    assert paused(*words[3:])[0] == 0
    assert result("a")["state"] == "finished"


@pytest.mark.usefixtures("paused")
def test_a_paused_run_without_an_earlier_checkpoint_cannot_be_verified(capfd):
    assert verify(["outputs/a"]) == 4
    reason = (
        "needs two checkpoints, has 1 (it is paused and keeps its newest; train.keep=all keeps all)"
    )
    assert reason in capfd.readouterr().err
