"""Runs side by side as plain values: what differs, what ranks, means over seeds; mistakes."""

from functools import cache
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from vggexp.config import compose
from vggexp.config.keys import flatten, to_plain, unflatten
from vggexp.report.heatmaps import axes, heat_map, natural_sort_key
from vggexp.report.mistakes import class_names, confusion, worst_mistakes
from vggexp.report.table import as_csv, as_markdown, build_table, repeats
from vggexp.runs.predictions import read
from vggexp.runs.records import RunRecord
from vggexp.sweep import expand


@cache
def composed(*groups):
    return flatten(to_plain(expand.compose_run(compose.parse_command(list(groups)))))


def run(name, *groups, keys=(), state="finished", rows=(), **result):
    """keys: what its configuration has instead, as ("optimizer.lr", 0.1). val_accuracy=0.5: of result.json."""
    result = {key.replace("_", "/"): value for key, value in result.items()}
    return RunRecord(
        Path("outputs") / name,
        state,
        composed(*groups) | dict(keys),
        {"epoch": 5, **result},
        list(rows),
        {},
    )


def test_only_what_differs_has_a_column():
    runs = [
        run("a", keys={"data.root": "/x", "train.keep": "all"}),
        run("b", keys={"seed": 1}),
        run("c", "arch=vgg16", keys={"optimizer.lr": 0.05, "arch.dropout": 0.1}),
        run("d", "arch=vgg16_bn", "scheduler=cosine"),
    ]
    table = build_table(runs)
    assert table.settings[:2] == ["network", "optimizer.lr"] and table.settings[-1] == "seed"
    assert {"arch.dropout", "scheduler.name"} <= set(table.settings)
    told = {"arch.blocks", "arch.norm", "data.root", "train.keep", "train.epochs"}
    assert not told & set(table.settings)
    row = table.rows[[row["run"] for row in table.rows].index("c")]
    assert (row["network"], row["optimizer.lr"], row["arch.dropout"]) == ("vgg16", 0.05, 0.1)
    assert row["parameters"] > 30_000_000  # told by arithmetic where result.json does not
    assert build_table(runs[:1]).settings == []
    assert unflatten(runs[0].config)["optimizer"]["lr"] == runs[0].config["optimizer.lr"]


def test_networks_of_one_name_are_told_by_their_rows():
    table = build_table(
        [run(str(width), keys={"arch.blocks": [[1, width], [1, 32]]}) for width in (8, 16)]
    )
    assert table.settings == ["arch.blocks"]
    assert (
        as_csv(["arch.blocks", "parameters"], table.rows)
        .splitlines()[1]
        .startswith('"[[1,8],[1,32]]",')
    )


def test_a_folder_of_pictures_need_not_be_there():
    keys = {"data.root": "/gone", "data.classes": None}
    (row,) = build_table([run("a", "data=image_folder", "data.classes=5", keys=keys)]).rows
    assert row["parameters"] is None and row["epochs"] == 5
    many = [
        run("b", f"arch={arch}", "data=image_folder", "data.classes=5", keys=keys)
        for arch in ("vgg11", "vgg13_bn")
    ]
    assert {row["network"] for row in build_table(many).rows} == {"vgg11", "vgg13_bn"}


def test_best_first_and_failed_last():
    epoch = {"epoch": 2, "val/accuracy": 0.95, "val/loss": 0.2, "time/epoch_seconds": 3.5}
    runs = [
        run("f", state="failed", rows=[epoch], error="no memory", val_accuracy=0.99),
        run(
            "i",
            state="interrupted",
            rows=[epoch, {**epoch, "epoch": 3}],
            error="stopped",
            epoch=None,
        ),
        run("b", val_accuracy=0.8, seconds=12.5),
        run("n"),
        run("a", val_accuracy=0.9),
        run("r", state="running", epoch=None),
        run("s", state="not started", epoch=None),
    ]
    table = build_table(runs)
    assert "".join(row["run"] for row in table.rows) == "abnrisf"
    values = {row["run"]: row for row in table.rows}
    assert (values["i"]["val/accuracy"], values["i"]["epochs"], values["i"]["seconds"]) == (
        0.95,
        3,
        7.0,
    )
    assert (values["b"]["seconds"], values["n"]["seconds"], values["f"]["error"]) == (
        12.5,
        None,
        "no memory",
    )


def test_without_held_out_images_the_test_ranks():
    table = build_table([run("b", test_accuracy=0.7), run("a", test_accuracy=0.8)])
    assert (table.score, [row["run"] for row in table.rows]) == ("test/accuracy", ["a", "b"])


@pytest.mark.parametrize("value", ["0.9", True, [1], {}, float("nan"), float("inf"), 10**400, None])
def test_what_is_no_number_is_unknown(value):
    (row,) = build_table(
        [run("a", val_accuracy=value, seconds=value, rows=[{"time/epoch_seconds": value}])]
    ).rows
    assert row["val/accuracy"] is None and row["seconds"] in (None, 0)


def test_configurations_of_another_version_are_shown_as_they_are():
    odd = [
        {"arch.blocks": [[1, 8]], "seed": 0},
        {"arch": 1, "arch.name": "x", "run": "y", "seed": 0},
        {},
    ]
    table = build_table(
        [RunRecord(Path(f"{i}"), "finished", config, {}, [], {}) for i, config in enumerate(odd)]
    )
    assert [(row["run"], row["network"]) for row in table.rows] == [
        ("0", "[[1,8]]"),
        ("1", "x"),
        ("2", "null"),
    ]


def test_repeats_are_runs_that_differ_in_the_seed():
    scores = {0.01: [0.8, 0.9, 0.86], 0.05: [0.95]}
    runs = [
        run(
            f"{lr}-{seed}",
            keys={"optimizer.lr": lr, "seed": seed},
            val_accuracy=score,
            test_accuracy=score / 2,
        )
        for lr, many in scores.items()
        for seed, score in enumerate(many)
    ]
    failed = run("f", keys={"optimizer.lr": 0.05, "seed": 1}, state="failed", val_accuracy=0.1)
    one, other = repeats(build_table([*runs, failed]))
    assert one == {
        "optimizer.lr": 0.05,
        "val/accuracy mean": 0.95,
        "val/accuracy deviation": None,
        "test/accuracy mean": 0.475,
        "test/accuracy deviation": None,
        "runs": 1,
        "not finished": 1,
    }
    assert other["val/accuracy mean"] == pytest.approx(mean(scores[0.01])) and other["runs"] == 3
    assert other["test/accuracy deviation"] == pytest.approx(stdev(scores[0.01]) / 2)
    assert repeats(build_table([runs[0], runs[3]])) == []


def test_texts_do_not_break_a_markdown_table():
    lines = as_markdown(["run"], [{"run": "a|b\n<c>\x1b[2J"}, {"run": "x" * 100}, {"run": None}])
    assert [line.count("\n") for line in lines] == [0] * 5 and "a\\|b\\n\\<c>\\x1b[2J" in lines[2]
    assert lines[3] == f"| {'x' * 77}... |" and lines[4].split()[1] == "-"


def test_heat_map():
    scores = {("vgg11", 0.01): [0.8, 0.9], ("vgg11", 0.1): [None], ("vgg13", 0.01): [0.92, 0.98]}
    runs = [
        run(
            f"{rate}",
            f"arch={arch}",
            keys={"optimizer.lr": rate, "seed": seed},
            val_accuracy=score,
            state="finished" if score else "failed",
        )
        for (arch, rate), many in scores.items()
        for seed, score in enumerate(many)
    ]
    table = build_table(runs)
    assert axes(table) == ("network", "optimizer.lr")
    text = heat_map(table, repeats(table))
    assert text.index("0.8500</td><td>✕</td>") < text.index("0.9500</td><td></td>")
    assert axes(build_table(runs[:1])) is None and heat_map(build_table(runs[:1]), []) == ""
    others = [
        run("", keys={"data.batch_size": a, "arch.hidden": [b]}) for a in (1, 2, 3) for b in (4, 5)
    ]
    assert axes(build_table(others)) == ("arch.hidden", "data.batch_size")


def test_names_sort_by_their_numbers():
    names = ["vgg16", "0.1", "vgg9_bn", "0.05", "vgg9", "1e-3", "null"]
    assert sorted(names, key=natural_sort_key) == [
        "1e-3",
        "0.05",
        "0.1",
        "null",
        "vgg9",
        "vgg9_bn",
        "vgg16",
    ]


SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]], np.float32)
LABELS = np.array([0, 2, 2, 1])


def test_confusions_and_mistakes(tmp_path):
    np.savez_compressed(tmp_path / "predictions.npz", scores=SCORES, labels=LABELS)
    found = read(tmp_path)
    assert confusion(found).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    worst = worst_mistakes(found)
    assert [(m.image, m.label, m.predicted) for m in worst] == [(1, 2, 1), (3, 1, 0)]
    assert [m.score for m in worst] == pytest.approx([0.9, 0.6]) and worst[
        1
    ].label_score == pytest.approx(0.3)
    assert worst_mistakes(found, 1) == worst[:1]


def test_class_names(tmp_path):
    assert class_names({"data.name": "fashion_mnist"}, 10)[1] == "Trouser"
    for config in (
        {},
        {"data.name": "fashion_mnist"},
        {"data.name": ["x"]},
        {"data.name": "image_folder"},
    ):
        assert class_names(config, 3) == ("0", "1", "2")
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    folder = {"data.name": "image_folder", "data.root": str(tmp_path)}
    assert class_names(folder, 2) == ("cat", "dog")
    assert (
        class_names({**folder, "data.root": "gone"}, 2)
        == class_names({**folder, "data.root": "\0"}, 2)
        == ("0", "1")
    )
