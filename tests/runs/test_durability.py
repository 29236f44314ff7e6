"""What result.json vouches for is on the disk before it, and is written again when it is lost."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import result
from tools.faults import run_files
from tools.faults.catalog import SMALLEST
from vggexp.runs import records
from vggexp.runs.directory import EVENTS_PREFIX

RUN = Path("outputs/a")


def make_finished_run(folder: Path, checkpoints=(3, 6)) -> Path:
    """Makes a run of `run_files.make_config()` with events and checkpoints of one byte."""
    run = folder / "runs" / "a"
    run_files.make_run(run)
    (run / f"{EVENTS_PREFIX}1").write_text("x")
    (run / "checkpoints").mkdir()
    for step in checkpoints:
        (run / "checkpoints" / f"{step:08d}.pt").write_text("x")
    return run


def test_a_complete_run_is_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_finished_run(tmp_path)
    config = run_files.make_config()
    assert records.finished_result(config)["test/accuracy"] == 1
    assert records.done_line(config, {"test/accuracy": 1}).endswith("1.0000  runs/a")


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize(
    "name", ["predictions.npz", "metrics.jsonl", "env.json", f"{EVENTS_PREFIX}1"]
)
def test_a_run_that_lost_a_file_is_not_finished(name, is_empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_finished_run(tmp_path)
    (run / name).unlink()
    if is_empty:
        (run / name).touch()
    assert records.finished_result(run_files.make_config()) is None
    expected = name.replace("tfevents.1", "tfevents.*")
    assert records.lost_files(run, {"state": "finished"}) == [expected]
    assert records.lost_files(run, {"state": "interrupted"}) == []


def test_an_empty_checkpoint_is_lost_and_a_deleted_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newest = make_finished_run(tmp_path) / "checkpoints" / "00000006.pt"
    newest.write_text("")
    assert records.finished_result(run_files.make_config()) is None
    newest.unlink()
    assert records.finished_result(run_files.make_config()) is not None


def test_without_a_checkpoint_the_result_stays_and_the_loss_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_finished_run(tmp_path, checkpoints=())
    (run / "predictions.npz").unlink()
    config = run_files.make_config()
    line = records.done_line(config, records.finished_result(config))
    assert "  (missing or empty: predictions.npz: cannot be written again here; " in line


@pytest.mark.process
def test_everything_is_durable_before_the_run_is_finished(command, monkeypatch):
    """Records the order of the system calls of a run."""
    calls = []
    fsync = os.fsync
    replace = os.replace

    def record_fsync(descriptor):
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(f"rename {Path(target).name}")
        replace(source, target)
        if Path(target).name == "result.json" and result("a")["state"] == "finished":
            calls.append("finished")

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    assert command(*SMALLEST)[0] == 0
    before = calls[: calls.index("finished")]
    events = next(RUN.glob(f"{EVENTS_PREFIX}*")).name
    # Not the last bytes: after the result, the file gets the state of the HParams table.
    assert f"sync {events}" in before[before.index("rename predictions.npz") :]
    last_checkpoint = max(RUN.glob("checkpoints/*.pt")).name
    assert before.index(f"sync {last_checkpoint}.tmp") < before.index(f"rename {last_checkpoint}")
    assert before[before.index(f"rename {last_checkpoint}") + 1] == "sync checkpoints"
    assert "sync metrics.jsonl" in before
    assert before[-2:] == ["sync result.json.tmp", "rename result.json"]
    assert calls[calls.index("finished") + 1] == "sync a"


@pytest.mark.process
def test_the_same_command_writes_again_what_was_lost(command):
    command(*SMALLEST)
    first = result("a")
    names = ["config.yaml", "result.json", "env.json", "metrics.jsonl", "predictions.npz"]
    contents = {name: (RUN / name).read_bytes() for name in names}
    for name in names:
        (RUN / name).rename("away")  # as an error about a damaged file advises
        code, output, error = command(*SMALLEST)
        assert (code, error) == (0, "")
        assert result("a")["weights_sha256"] == first["weights_sha256"]
        assert (f"warning: the finished run lost {name}: writing it again" in output) == (
            name in ("env.json", "metrics.jsonl", "predictions.npz")
        )
        if name in ("config.yaml", "metrics.jsonl", "predictions.npz"):
            assert (RUN / name).read_bytes() == contents[name]
    assert json.loads((RUN / "env.json").read_text())["attempts"] > 1


LINKS = ["run.log", "metrics.jsonl", "predictions.npz", "overrides.txt", "env.json", "config.yaml"]


@pytest.mark.process
def test_no_file_is_written_through_a_link(command, tmp_path):
    command(*SMALLEST, "train.epochs=1")
    notes = tmp_path / "notes"
    notes.write_text("mine")
    for name in LINKS:
        if name not in ("env.json", "config.yaml", "metrics.jsonl"):  # these are read first
            (RUN / name).unlink()
            (RUN / name).symlink_to(notes)
    code, _, error = command(*SMALLEST)
    assert (code, error) == (0, "")
    assert notes.read_text() == "mine"
    assert not (RUN / "predictions.npz").is_symlink()


@pytest.mark.process
@pytest.mark.parametrize("name", [".lock", "checkpoints"])
def test_a_link_that_has_to_be_written_is_refused(name, command, tmp_path):
    command(*SMALLEST, "train.epochs=1")
    models = tmp_path / "models"
    (RUN / name).rename(models)
    if models.is_dir():
        (models / "99999999.pt").write_text("not a checkpoint")
        (models / "1.tmp").write_text("mine")
        before = sorted(os.listdir(models))
    else:
        models.write_text("mine")
    (RUN / name).symlink_to(models)
    code, _, error = command(*SMALLEST)
    assert code == 6
    assert f"outputs/a/{name}: " in error
    assert "a link, and no file is written through links; remove it" in error
    assert error.count("\n") == 1
    if models.is_dir():
        assert sorted(os.listdir(models)) == before
    else:
        assert models.read_text() == "mine"


@pytest.mark.process
def test_the_run_itself_may_be_a_link(command, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "outputs").symlink_to("scratch")
    assert command(*SMALLEST)[0] == 0
    RUN.rename("moved")
    RUN.symlink_to("../moved")
    assert "already finished" in command(*SMALLEST)[1]


@pytest.mark.process
def test_a_run_is_not_writable_by_others(command):
    before = os.umask(0)
    try:
        command(*SMALLEST)
    finally:
        os.umask(before)
    writable = [path for path in Path("outputs").rglob("*") if path.stat().st_mode & 0o022]
    assert not writable
    assert not Path("outputs").stat().st_mode & 0o022
