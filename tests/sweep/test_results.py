"""Tests the table of a sweep: its order, and the same numbers in CSV and Markdown."""

import csv

import pytest

from vggexp.runs.directory import write_result
from vggexp.sweep.results import repeat_folders, write_sweep_table

RUNS = {  # state, val/accuracy, val/loss; the loss ranks the runs otherwise
    "a": ("finished", 0.7, 0.9),
    "b": ("failed", 0.99, 0.1),
    "c": ("finished", 0.912345, 1.5),
    "d": ("interrupted", None, None),
    "e": ("finished", 0.8, 0.2),
    "f": ("finished", None, None),
}
OVERRIDES = [
    ["arch=vgg11", f"+optimizer.lr={number / 10}", "run.name='='"]
    for number in range(len(RUNS) + 1)
]


@pytest.mark.parametrize(
    ("objective", "order"),
    [("val/accuracy", "ceafbd"), ("val/loss", "eacfbd"), ("train/loss", "eacfbd")],
)
def test_the_objective_ranks_the_jobs(tmp_path, capsys, objective, order):
    for name, (state, accuracy, loss) in RUNS.items():
        (tmp_path / name).mkdir()
        fields = {
            "val/accuracy": accuracy,
            "val/loss": loss,
            "train/loss": loss and loss / 2,
            "seconds": 12.5,
        }
        write_result(tmp_path / name, state, **fields)
    folders = [tmp_path / name for name in (*RUNS, "never")]
    target = tmp_path / "sweeps" / "x"
    assert write_sweep_table(folders, OVERRIDES, objective, target) == 3
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
        "run",
    ]
    assert list(rows[0]) == list(dict.fromkeys(columns))
    values = {
        "optimizer.lr": "0.2",
        "val/accuracy": "0.912345",
        "val/loss": "1.5",
        "seconds": "12.5",
        "run": "c",
    }
    assert values.items() <= rows[order.index("c")].items()
    unfinished = [(row["val/accuracy"], row["state"]) for row in rows[-3:-1]]
    assert unfinished == [("", "failed"), ("", "interrupted")]
    assert rows[-1]["state"] == "not started"
    text = (target / "results.md").read_text()
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == [*order, "never"]
    assert " 0.9123 " in lines[2 + order.index("c")]
    assert len({len(line) for line in lines}) == 1


def test_an_error_stays_one_line(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", "failed", error="no\x1b[2J|room\n" + "x" * 100)
    assert write_sweep_table([tmp_path / "a"], [["seed=1"]], "val/accuracy", tmp_path) == 1
    header, rule, row = capsys.readouterr().out.splitlines()
    assert "no\\x1b[2J\\|room\\nxxx" in row
    assert "xxx... |" in row
    assert len(header) == len(row)
    assert len(rule) == len(row)


def test_repeats_are_grouped_by_the_other_keys(tmp_path):
    overrides = [[f"optimizer.lr={lr}", f"seed={seed}"] for lr in (0.1, 0.2) for seed in (0, 1)]
    folders = [tmp_path / name for name in "abcd"]
    expected = {"optimizer.lr=0.1": folders[:2], "optimizer.lr=0.2": folders[2:]}
    assert repeat_folders(folders, overrides) == expected
    assert repeat_folders(folders[::2], overrides[::2]) == {}
