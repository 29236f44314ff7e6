"""The folder of a sweep stands for its runs: by its list, its study, or the table of old sweeps."""

import json

import pytest

from tests.runs.test_records import write_run
from vggexp.errors import CheckpointError
from vggexp.runs.directory import write_result
from vggexp.runs.records import find_runs
from vggexp.runs.sweeps import (
    SweptRun,
    expand_sweeps,
    name_sweeps,
    read_runs,
    runs_in_state,
    write_runs,
)

TABLE = "arch,val/accuracy,state,run\nvgg11,0.9,finished,a\nvgg13,,failed,b\n"


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweeps/arch-00000000"
    folder.mkdir(parents=True)
    return folder


def test_a_sweep_lists_its_runs_with_their_overrides(tmp_path, sweep):
    runs = [SweptRun(tmp_path / "a", ["arch=vgg11"]), SweptRun(tmp_path / "b", ["arch=vgg13"])]
    write_runs(sweep, runs)
    assert read_runs(sweep) == runs
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert read_runs(moved / "sweeps/arch-00000000")[0].folder == moved / "a"


def test_other_folders_are_no_sweeps(tmp_path):
    assert read_runs(tmp_path) is None
    assert read_runs(write_run(tmp_path / "a")) is None
    assert read_runs(tmp_path / "nowhere") is None
    assert read_runs(tmp_path / "a/config.yaml") is None


def test_the_table_of_an_earlier_version_names_the_runs(tmp_path, sweep):
    (sweep / "results.csv").write_text(TABLE)
    assert [run.folder for run in read_runs(sweep)] == [tmp_path / "a", tmp_path / "b"]


def test_a_sweep_in_a_folder_of_its_own_finds_its_runs(tmp_path):
    sweep = tmp_path / "elsewhere"
    sweep.mkdir()
    (sweep / "results.csv").write_text(TABLE)
    (sweep / "multirun.yaml").write_text(f"run: {{root: {tmp_path / 'outputs'}}}")
    assert [run.folder.parent for run in read_runs(sweep)] == 2 * [tmp_path / "outputs"]


def test_the_study_of_a_search_names_the_runs_so_far(tmp_path, sweep):
    entries = [{"op_code": 4}]
    for run in ("outputs/a", "", "outputs/b", "outputs/a"):
        entries.append({"op_code": 8, "user_attr": {"run": run}})
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (sweep / "study.log").write_text(lines + '{"op_code": 8, "user_attr": {"ru')
    assert [run.folder for run in read_runs(sweep)] == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.json", "["),
        ("runs.json", '{"runs": [{"run": 3, "overrides": []}]}'),
        ("runs.json", '{"runs": 3}'),
        ("study.log", '{"user_attr": 3}\n'),
        ("results.csv", "a,b\n1,2\n"),
    ],
)
def test_a_damaged_file_is_named(sweep, name, content):
    (sweep / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        read_runs(sweep)


def test_a_folder_of_sweeps_names_them(tmp_path, sweep):
    folders = [tmp_path / "sweeps" / name for name in ("results.csv", "runs.json", "study.log")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / folder.name).touch()
    inside = f"{folders[0]}, {folders[1]}, {folders[2]}"
    assert name_sweeps(tmp_path / "sweeps") == f"; give one of its sweeps: {inside}"
    assert name_sweeps(tmp_path / "nowhere") == ""


def test_a_sweep_stands_for_the_runs_that_exist(tmp_path, sweep):
    runs = [SweptRun(write_run(tmp_path / "a"), []), SweptRun(tmp_path / "b", [])]
    write_runs(sweep, runs)
    skipped = []
    assert expand_sweeps([sweep, tmp_path / "c"], skipped.append) == [
        tmp_path / "a",
        tmp_path / "c",
    ]
    assert [str(error) for error in skipped] == [f"{sweep}: 1 of its 2 runs do not exist (yet)"]
    assert find_runs([sweep, tmp_path]) == [tmp_path / "a"]


def test_a_sweep_stands_for_its_runs_in_a_state(tmp_path, sweep):
    folders = []
    for state in ("finished", "failed", "paused"):
        folders.append(write_run(tmp_path / state))
        write_result(folders[-1], state)
    write_runs(sweep, [SweptRun(folder, []) for folder in folders])
    skipped = []
    assert runs_in_state(sweep, "finished", skipped.append) == [tmp_path / "finished"]
    assert skipped == [f"{sweep}: 2 of its 3 runs are not finished"]
    assert runs_in_state(tmp_path / "failed", "finished", skipped.append) == [tmp_path / "failed"]
