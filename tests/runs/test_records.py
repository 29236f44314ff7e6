"""Run directories read back: what is found, and in which state."""

import os

import pytest
import yaml

from vggexp.errors import CheckpointError
from vggexp.runs.directory import write_result
from vggexp.runs.records import find_runs, read_run
from vggexp.system.locks import lock_run_dir


def made(folder, state="finished"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": {"lr": 0.1}, "seed": 3}))
    write_result(folder, state)
    return folder


def test_runs_are_found_once_wherever_they_lie(tmp_path):
    one, other = made(tmp_path / "b"), made(tmp_path / "deep" / "a")
    made(one / "checkpoints" / "c")
    (tmp_path / "sweeps" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(one)
    assert find_runs([tmp_path, one, tmp_path / "deep"]) == [other, one]


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "finished"])
def test_the_state_is_that_of_now(tmp_path, state):
    folder = made(tmp_path / "a", state)
    run = read_run(folder)
    assert (run.name, run.config, run.rows) == ("a", {"optimizer.lr": 0.1, "seed": 3}, [])
    assert run.state == ("interrupted" if state == "running" else state)
    with lock_run_dir(folder):
        assert read_run(folder).state == state


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.jsonl", "env.json"])
def test_what_is_no_run_is_refused(tmp_path, name):
    folder = made(tmp_path / "a")
    (folder / name).write_text("[" * 10 + "\n" * 3)
    with pytest.raises(CheckpointError, match=name):
        read_run(folder)
    assert os.listdir(tmp_path) == ["a"]
