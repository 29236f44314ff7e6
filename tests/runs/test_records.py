"""Run directories read back: which folders are runs, and their states."""

import os
from dataclasses import replace

import pytest
import yaml

from tools.faults.run_files import make_config, make_run
from vggexp.errors import CheckpointError
from vggexp.runs.directory import write_result
from vggexp.runs.records import find_runs, load_config, read_run, resume_hint, without_neighbors
from vggexp.system.locks import lock_run_dir


def write_run(folder, state="finished"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": {"lr": 0.1}, "seed": 3}))
    write_result(folder, state)
    return folder


def test_each_run_is_found_once(tmp_path):
    first = write_run(tmp_path / "deep" / "a")
    second = write_run(tmp_path / "b")
    write_run(second / "checkpoints" / "c")
    (tmp_path / "sweeps" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(second)
    assert find_runs([tmp_path, second, tmp_path / "deep"]) == [first, second]


def test_neighbors_of_runs_are_no_runs(tmp_path):
    run = write_run(tmp_path / "a")
    report = tmp_path / "report.html"
    assert without_neighbors([run, report, tmp_path / "sweeps"]) == [run]
    assert without_neighbors([report]) == [report]
    named = write_run(tmp_path / "README.md")
    assert without_neighbors([run, named]) == [run, named]


@pytest.mark.parametrize("state", ["running", "paused", "interrupted", "failed", "finished"])
def test_a_running_run_without_a_process_is_interrupted(tmp_path, state):
    folder = write_run(tmp_path / "a", state)
    run = read_run(folder)
    assert run.name == "a"
    assert run.config == {"optimizer.lr": 0.1, "seed": 3}
    assert run.rows == []
    assert run.state == ("interrupted" if state == "running" else state)
    with lock_run_dir(folder):
        assert read_run(folder).state == state


def test_how_to_continue_a_run_of_resume_never(tmp_path):
    continued = resume_hint(replace(make_config(), resume="never"), tmp_path / "a-2")
    assert continued == "run.name=a-2 in place of resume=never continues it"
    assert resume_hint(make_config(), tmp_path / "a") == "run the same command to continue"


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.jsonl", "env.json"])
def test_files_that_no_run_writes_are_refused(tmp_path, name):
    folder = write_run(tmp_path / "a")
    (folder / name).write_text("[" * 10 + "\n" * 3)
    with pytest.raises(CheckpointError, match=name):
        read_run(folder)
    assert os.listdir(tmp_path) == ["a"]


def test_a_configuration_that_breaks_a_rule_is_refused(tmp_path):
    make_run(tmp_path / "a")
    path = tmp_path / "a" / "config.yaml"
    assert load_config(tmp_path / "a") == make_config()
    config = yaml.safe_load(path.read_text())
    config["arch"]["blocks"] = []
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"\(arch\.blocks=\[\]: needs 1\.\.12 blocks\)"):
        load_config(tmp_path / "a")


def test_a_copied_run_may_name_folders_that_are_elsewhere(tmp_path):
    make_run(tmp_path / "a")
    path = tmp_path / "a" / "config.yaml"
    (tmp_path / "file").touch()
    config = yaml.safe_load(path.read_text())
    config["data"]["root"] = config["run"]["root"] = str(tmp_path / "file")
    path.write_text(yaml.safe_dump(config))
    assert load_config(tmp_path / "a").run.root == str(tmp_path / "file")


def test_a_warm_up_before_one_cycle_is_accepted_of_a_recorded_run(tmp_path):
    """Runs of earlier versions have such a schedule."""
    make_run(tmp_path / "a")
    path = tmp_path / "a" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["scheduler"] = {
        "name": "onecycle",
        "warmup_epochs": 1,
        "peak_fraction": 0.25,
        "initial_factor": 0.1,
        "final_factor": 0,
    }
    path.write_text(yaml.safe_dump(config))
    assert load_config(tmp_path / "a").scheduler.warmup_epochs == 1
