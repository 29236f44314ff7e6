"""The table of a sweep: best first, what did not finish last, the same numbers in CSV and Markdown."""

import csv

import pytest

from vggexp.runs.directory import write_result
from vggexp.sweep.results import write_sweep_table

RUNS = {  # state, val/accuracy, val/loss: the loss ranks otherwise
    "a": ("finished", 0.7, 0.9),
    "b": ("failed", 0.99, 0.1),
    "c": ("finished", 0.912345, 1.5),
    "d": ("interrupted", None, None),
    "e": ("finished", 0.8, 0.2),
    "f": ("finished", None, None),
}
SWEPT = [
    ["arch=vgg11", f"+optimizer.lr={index / 10}", "data.root=a=b"] for index in range(len(RUNS) + 1)
]


@pytest.mark.parametrize(
    ("objective", "order"),
    [("val/accuracy", "ceafbd"), ("val/loss", "eacfbd"), ("train/loss", "eacfbd")],
)
def test_ranking(tmp_path, capsys, objective, order):
    for name, (state, accuracy, loss) in RUNS.items():
        (tmp_path / name).mkdir()
        facts = {
            "val/accuracy": accuracy,
            "val/loss": loss,
            "train/loss": loss and loss / 2,
            "seconds": 12.5,
        }
        write_result(tmp_path / name, state, **facts)
    assert (
        write_sweep_table(
            [tmp_path / name for name in (*RUNS, "never")],
            SWEPT,
            objective,
            tmp_path / "sweeps" / "x",
        )
        == 3
    )
    with open(tmp_path / "sweeps" / "x" / "results.csv", newline="") as file:
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
    assert [(row["val/accuracy"], row["state"]) for row in rows[-3:-1]] == [
        ("", "failed"),
        ("", "interrupted"),
    ]
    assert rows[-1]["state"] == "not started"
    text = (tmp_path / "sweeps" / "x" / "results.md").read_text()
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == [*order, "never"]
    assert " 0.9123 " in lines[2 + order.index("c")]
    assert len({len(line) for line in lines}) == 1


def test_an_error_stays_one_line(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", "failed", error="no\x1b[2J|room\n" + "x" * 100)
    assert write_sweep_table([tmp_path / "a"], [["seed=1"]], "val/accuracy", tmp_path) == 1
    head, rule, row = capsys.readouterr().out.splitlines()
    assert (
        "no\\x1b[2J\\|room\\nxxx" in row
        and "xxx... |" in row
        and len(head) == len(rule) == len(row)
    )
