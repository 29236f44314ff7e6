"""Tests the table of a sweep: its order, and the same numbers in CSV and Markdown."""

import csv
import json

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.runs.directory import write_metadata, write_result
from vggexp.sweep.expand import compose_run
from vggexp.sweep.results import SweepJob, repeat_folders, write_sweep_table

RUNS = {  # state, val/accuracy, val/loss; the loss ranks the runs otherwise
    "a": ("finished", 0.7, 0.9),
    "b": ("failed", 0.99, 0.1),
    "c": ("finished", 0.912345, 1.5),
    "d": ("interrupted", None, None),
    "e": ("finished", 0.8, 0.2),
    "f": ("finished", None, None),
}
OVERRIDES = [
    ["arch=vgg11", f"optimizer.lr={index / 10 + 0.1:g}", "device=cpu"]
    for index in range(len(RUNS) + 1)
]


def make_job(folder, *overrides, error=""):
    config = compose_run(parse_command([*TINY, *overrides]))
    return SweepJob(overrides, folder, config, error)


def write_run(job, state, **fields):
    """Writes what a run of the job's configuration leaves."""
    job.folder.mkdir()
    write_metadata(job.folder, to_plain(job.config), [], {})
    write_result(job.folder, state, **fields)


@pytest.mark.parametrize(
    ("objective", "order"),
    [("val/accuracy", "ceafbd"), ("val/loss", "eacfbd"), ("train/loss", "eacfbd")],
)
def test_the_objective_ranks_the_jobs(tmp_path, capsys, objective, order):
    jobs = []
    for name, overrides in zip((*RUNS, "never"), OVERRIDES, strict=True):
        jobs.append(make_job(tmp_path / name, *overrides))
    for job, (state, accuracy, loss) in zip(jobs, RUNS.values(), strict=False):
        fields = {
            "val/accuracy": accuracy,
            "val/loss": loss,
            "train/loss": loss and loss / 2,
            "seconds": 12.5,
        }
        write_run(job, state, **fields)
    target = tmp_path / "sweeps" / "x"
    table = write_sweep_table(jobs, objective, target)
    assert [row["run"] for row in table] == [*order, "never"]
    with open(target / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [*order, "never"]
    columns = [
        "optimizer.lr",
        objective,
        "val/accuracy",
        "val/loss",
        "test/accuracy",
        "seconds",
        "state",
        "error",
        "run",
    ]
    assert list(rows[0]) == list(dict.fromkeys(columns))
    values = {
        "optimizer.lr": "0.3",
        "val/accuracy": "0.912345",
        "val/loss": "1.5",
        "seconds": "12.5",
        "run": "c",
    }
    assert values.items() <= rows[order.index("c")].items()
    unfinished = [(row["val/accuracy"], row["state"]) for row in rows[-3:-1]]
    assert unfinished == [("", "failed"), ("", "interrupted")]
    assert rows[-1]["state"] == "not started"
    errors = {row["run"]: row["error"] for row in rows if row["error"]}
    assert errors == {"f": f"{objective} is not a number"}
    text = (target / "results.md").read_text()
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == [*order, "never"]
    assert " 0.9123 " in lines[2 + order.index("c")]
    assert "| 12.5 s " in lines[2 + order.index("c")]
    assert "| time " in lines[0]
    assert len({len(line) for line in lines}) == 1


def test_an_error_stays_one_line(tmp_path, capsys):
    job = make_job(tmp_path / "a")
    write_run(job, "failed", error="no\x1b[2J|room\n" + "x" * 100)
    (table_row,) = write_sweep_table([job], "val/accuracy", tmp_path)
    assert table_row["state"] == "failed"
    header, rule, row = capsys.readouterr().out.splitlines()
    assert "no\\x1b[2J\\|room\\nxxx" in row
    assert "xxx... |" in row
    assert len(header) == len(row)
    assert len(rule) == len(row)


@pytest.mark.parametrize(
    ("objective", "error"),
    [("val/loss", "val/loss is not a number"), ("val/accuracy", ""), ("test/accuracy", "")],
)
def test_a_stopped_run_without_its_objective_says_so(objective, error, tmp_path):
    job = make_job(tmp_path / "a", "run.until=1")
    write_run(job, "paused")
    epoch = {"epoch": 1, "val/accuracy": 0.1, "val/loss": None, "time/epoch_seconds": 1.0}
    (job.folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    (row,) = write_sweep_table([job], objective, tmp_path)
    assert (row["state"], row["error"]) == ("paused", error)


RECORDED = {"val/accuracy": 0.9, "seconds": 1.0}


@pytest.mark.parametrize(
    ("overrides", "state", "reason"),
    [
        ([], "finished", ""),
        (["optimizer.lr=0.3"], "failed", "optimizer.lr: run has 0.01, command says 0.3"),
        (["optimizer.lr=0.3", "resume=force"], "interrupted", ""),
        (["train.epochs=9"], "interrupted", ""),
    ],
)
def test_a_row_has_the_score_of_its_own_run(tmp_path, overrides, state, reason):
    recorded = make_job(tmp_path / "a")
    write_run(recorded, "finished", **RECORDED)
    job = make_job(tmp_path / "a", *overrides)
    (row,) = write_sweep_table([job], "val/accuracy", tmp_path)
    assert row["state"] == state
    assert reason in row["error"]
    assert row["val/accuracy"] == (0.9 if state == "finished" else None)
    assert row["seconds"] == (1.0 if state == "finished" else None)


def test_a_run_that_cannot_be_read_is_a_failed_row(tmp_path):
    job = make_job(tmp_path / "a")
    write_run(job, "finished", **RECORDED)
    (tmp_path / "a/result.json").write_text("{")
    (row,) = write_sweep_table([job], "val/accuracy", tmp_path)
    assert row["state"] == "failed"
    assert "result.json: not JSON" in row["error"]


@pytest.mark.parametrize(
    ("recorded", "state"),
    [(None, "failed"), ("failed", "failed"), ("interrupted", "interrupted")],
)
def test_the_error_of_the_launcher_is_that_of_the_row(tmp_path, recorded, state):
    job = make_job(tmp_path / "a", error="data.root=b: no such directory")
    if recorded:
        write_run(job, recorded, error="of an earlier attempt")
    (row,) = write_sweep_table([job], "val/accuracy", tmp_path)
    assert row["state"] == state
    assert row["error"] == "data.root=b: no such directory"


def write_experiments(folder, **files):
    (folder / "experiment").mkdir()
    for name, text in files.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")


def columns_of(folder, *swept):
    """The settings columns of a sweep of experiment files, and the cells of its rows."""
    jobs = []
    for index, name in enumerate(swept):
        argv = ["--config-dir", str(folder), *TINY, f"experiment={name}"]
        config = compose_run(parse_command(argv))
        jobs.append(SweepJob([f"experiment={name}"], folder / str(index), config))
    rows = write_sweep_table(jobs, "val/accuracy", folder)
    keys = list(rows[0])[: list(rows[0]).index("val/accuracy")]
    return keys, [[row[key] for key in keys] for row in rows]


def test_a_setting_that_only_the_files_change_has_a_column(tmp_path, capsys):
    write_experiments(
        tmp_path, ls1="train: {label_smoothing: 0.1}", ls2="train: {label_smoothing: 0.2}"
    )
    keys, cells = columns_of(tmp_path, "ls1", "ls2")
    assert keys == ["experiment", "train.label_smoothing"]
    assert cells == [["ls1", "0.1"], ["ls2", "0.2"]]
    assert "| experiment | train.label_smoothing |" in capsys.readouterr().out
    header, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert header.startswith("experiment,train.label_smoothing,")


def test_a_network_is_named_if_its_name_says_all(tmp_path):
    write_experiments(
        tmp_path,
        a="arch: {norm: batch}",
        b="arch: {norm: none}",
        c="arch: {norm: none, blocks: [[1, 9], [1, 9], [1, 9], [1, 9], [4, 9]]}",
        d="arch: {norm: none, blocks: [[1, 8], [1, 8], [1, 8], [1, 8], [4, 8]]}",
    )
    assert columns_of(tmp_path, "a", "b")[0] == ["experiment", "network"]
    assert columns_of(tmp_path, "c", "d")[0] == ["experiment", "network"]


def test_repeats_are_grouped_by_the_other_keys(tmp_path):
    jobs = []
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            job = make_job(tmp_path / f"{lr}-{seed}", f"optimizer.lr={lr}", f"seed={seed}")
            write_run(job, "finished")
            jobs.append(job)
    folders = [job.folder for job in jobs]
    expected = {"optimizer.lr=0.1": folders[:2], "optimizer.lr=0.2": folders[2:]}
    assert repeat_folders(jobs) == expected
    assert repeat_folders(jobs[::2]) == {}


def test_the_run_of_another_configuration_is_no_repeat(tmp_path):
    jobs = [make_job(tmp_path / f"{seed}", f"seed={seed}") for seed in (0, 1)]
    write_run(jobs[0], "finished")
    write_run(make_job(tmp_path / "1", "seed=7"), "finished")
    assert repeat_folders(jobs) == {"all": [tmp_path / "0"]}
