"""Checks the table: which settings have a column, which run ranks first, and means over seeds."""

import csv
import os
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev

import pytest

from tests.report.conftest import make_record
from vggexp.config.keys import unflatten
from vggexp.report.table import (
    build_sections,
    build_table,
    display_cell,
    repeat_rows,
    short_names,
    to_csv,
    to_markdown,
)
from vggexp.runs.records import RunRecord


def test_only_settings_that_differ_have_a_column():
    runs = [
        make_record("a", keys={"data.root": "/x", "train.keep": "all"}),
        make_record("b", keys={"seed": 1}),
        make_record("c", "arch=vgg16", keys={"optimizer.lr": 0.05, "arch.dropout": 0.1}),
        make_record("d", "arch=vgg16_bn", "scheduler=cosine"),
    ]
    table = build_table(runs)
    assert table.settings[:2] == ["network", "optimizer.lr"]
    assert table.settings[-1] == "seed"
    assert {"arch.dropout", "scheduler.name"} <= set(table.settings)
    redundant = {"arch.blocks", "arch.norm", "data.root", "train.keep", "train.epochs"}
    assert not redundant & set(table.settings)
    (row,) = [row for row in table.rows if row["run"] == "c"]
    assert row["network"] == "vgg16"
    assert row["optimizer.lr"] == 0.05
    assert row["arch.dropout"] == 0.1
    assert row["parameters"] > 30_000_000  # computed, because result.json has no value
    assert build_table(runs[:1]).settings == []
    assert unflatten(runs[0].config)["optimizer"]["lr"] == runs[0].config["optimizer.lr"]


IN_MEMORY = {"data.cache": "device"}
FOLDER = ("data=image_folder", "data.root=.", "data.classes=2")


@pytest.mark.parametrize(
    ("overrides", "keys", "columns"),
    [
        ((), {"device.processes": 1, "train.test_flip": False} | IN_MEMORY, []),
        ((), {"device.processes": 2}, ["device.processes"]),
        (FOLDER, {"data.test_fraction": 0.2}, []),
        (FOLDER, {"data.cache": "ram"}, ["data.cache"]),
    ],
)
def test_a_value_that_makes_no_other_run_has_no_column(overrides, keys, columns):
    runs = [
        make_record("a", *overrides, val_accuracy=0.5),
        make_record("b", *overrides, keys={"seed": 1} | keys, val_accuracy=0.7),
    ]
    table = build_table(runs)
    assert table.settings == [*columns, "seed"]
    assert len(repeat_rows(table)) == (0 if columns else 1)


def test_networks_of_one_name_are_distinguished_by_their_blocks():
    runs = [
        make_record(str(width), keys={"arch.blocks": [[1, width], [1, 32]]}) for width in (8, 16)
    ]
    table = build_table(runs)
    assert table.settings == ["arch.blocks"]
    line = to_csv([table]).splitlines()[1]
    assert line.startswith('"[[1,8],[1,32]]",')


def test_seeds_of_one_network_typed_in_two_ways_are_repeats():
    runs = [
        make_record(name, keys={"run.network": name, "seed": seed}, val_accuracy=0.9 - seed)
        for seed, name in enumerate(("vgg11", "vgg11_bn-norm_none"))
    ]
    table = build_table(runs)
    assert [row["network"] for row in table.rows] == ["vgg11", "vgg11_bn-norm_none"]
    (means,) = repeat_rows(table)
    assert (means["network"], means["runs"]) == ("vgg11", 2)


def test_an_image_folder_need_not_exist():
    overrides = ("data=image_folder", "data.classes=5")
    keys = {"data.root": "/gone", "data.classes": None}
    (row,) = build_table([make_record("a", *overrides, keys=keys)]).rows
    assert row["parameters"] is None
    assert row["epochs"] == 5
    runs = [
        make_record("b", f"arch={arch}", *overrides, keys=keys) for arch in ("vgg11", "vgg13_bn")
    ]
    networks = {row["network"] for row in build_table(runs).rows}
    assert networks == {"vgg11", "vgg13_bn"}


def test_the_best_run_is_first_and_failed_runs_are_last():
    epoch = {"epoch": 2, "val/accuracy": 0.95, "val/loss": 0.2, "time/epoch_seconds": 3.5}
    epochs = [epoch, {**epoch, "epoch": 3}]
    runs = [
        make_record("f", state="failed", rows=[epoch], error="no memory", val_accuracy=0.99),
        make_record("i", state="interrupted", rows=epochs, error="stopped", epoch=None),
        make_record("b", val_accuracy=0.8, seconds=12.5),
        make_record("n"),
        make_record("a", val_accuracy=0.9),
        make_record("r", state="running", epoch=None),
        make_record("p", state="paused", rows=[epoch], epoch=None),
        make_record("q", state="paused", rows=epochs, epoch=None),
        make_record("s", state="not started", epoch=None),
    ]
    table = build_table(runs)
    assert "".join(row["run"] for row in table.rows) == "abnqprisf"
    assert [run.name for run in table.runs] == [row["run"] for row in table.rows]
    rows = {row["run"]: row for row in table.rows}
    assert rows["i"]["val/accuracy"] == 0.95
    assert rows["p"]["val/accuracy"] == 0.95
    assert rows["i"]["epochs"] == 3
    assert rows["i"]["seconds"] == 7.0
    assert rows["b"]["seconds"] == 12.5
    assert rows["n"]["seconds"] is None
    assert rows["f"]["error"] == "no memory"


def test_without_validation_images_the_test_accuracy_ranks():
    runs = [make_record("b", test_accuracy=0.7), make_record("a", test_accuracy=0.8)]
    table = build_table(runs)
    assert table.score == "test/accuracy"
    assert [row["run"] for row in table.rows] == ["a", "b"]


def test_epochs_without_a_time_count_as_zero_seconds():
    run = make_record("a", rows=[{"time/epoch_seconds": None}, {}, {"time/epoch_seconds": 2.0}])
    (row,) = build_table([run]).rows
    assert row["seconds"] == 2.0


def test_configurations_of_another_version_have_the_name_as_typed():
    configs = [
        {"arch.blocks": [[1, 8]], "seed": 0},
        {"arch": 1, "arch.name": "x", "run": "y", "seed": 0},
        {},
    ]
    runs = [
        RunRecord(Path(str(index)), "finished", config, {}, [], {})
        for index, config in enumerate(configs)
    ]
    names = [(row["run"], row["network"]) for row in build_table(runs).rows]
    assert names == [("0", "[[1,8]]"), ("1", "x"), ("2", "null")]


def test_repeats_are_runs_that_differ_only_in_the_seed():
    accuracies = [0.8, 0.9, 0.86]
    runs = [
        make_record(
            f"0.01-{seed}",
            keys={"optimizer.lr": 0.01, "seed": seed},
            val_accuracy=accuracy,
            test_accuracy=accuracy / 2,
        )
        for seed, accuracy in enumerate(accuracies)
    ]
    keys = {"optimizer.lr": 0.05, "seed": 0}
    runs.append(make_record("0.05-0", keys=keys, val_accuracy=0.95, test_accuracy=0.475))
    failed_keys = {"optimizer.lr": 0.05, "seed": 1}
    failed = make_record("f", keys=failed_keys, state="failed", val_accuracy=0.1)
    best, second = repeat_rows(build_table([*runs, failed]))
    assert best == {
        "optimizer.lr": 0.05,
        "val/accuracy mean": 0.95,
        "val/accuracy deviation": None,
        "test/accuracy mean": 0.475,
        "test/accuracy deviation": None,
        "runs": 1,
        "not finished": 1,
    }
    assert second["val/accuracy mean"] == pytest.approx(mean(accuracies))
    assert second["runs"] == 3
    assert second["test/accuracy deviation"] == pytest.approx(stdev(accuracies) / 2)
    assert repeat_rows(build_table([runs[0], runs[3]])) == []


def test_the_seeds_of_a_setting_that_was_stopped_have_a_mean_and_their_epoch():
    runs = []
    for lr, state, accuracies in ((0.01, "finished", (0.8, 0.9)), (0.1, "paused", (0.9, 0.94))):
        for seed, accuracy in enumerate(accuracies):
            keys = {"optimizer.lr": lr, "seed": seed}
            name = f"{lr}-{seed}"
            runs.append(make_record(name, keys=keys, state=state, val_accuracy=accuracy))
    table = build_table(runs)
    finished, stopped = repeat_rows(table)
    assert (finished["optimizer.lr"], finished["stopped at epoch"]) == (0.01, None)
    assert (stopped["optimizer.lr"], stopped["stopped at epoch"]) == (0.1, 5)
    assert stopped["val/accuracy mean"] == pytest.approx(0.92)
    assert (stopped["runs"], stopped["not finished"]) == (2, 0)


def test_texts_do_not_break_a_markdown_table():
    lines = to_markdown(["run"], [{"run": "a|b\n<c>\x1b[2J"}, {"run": "x" * 100}, {"run": None}])
    assert [line.count("\n") for line in lines] == [0] * 5
    assert "a\\|b\\n\\<c>\\x1b[2J" in lines[2]
    assert lines[3] == f"| {'x' * 39}...{'x' * 38} |"
    assert lines[4].split()[1] == "-"


def test_copies_with_long_names_differ():
    names = [f"{'vgg11-' * 20}3ff17743{end}" for end in ("", "-2", "-3")]
    lines = to_markdown(["run"], [{"run": name} for name in names])
    assert [line.split("3ff17743")[1] for line in lines[2:]] == [" |", "-2 |", "-3 |"]


def test_the_score_stands_before_many_settings():
    keys = ("a.a", "a.b", "a.c", "a.d", "a.e")
    runs = [make_record(str(n), keys=dict.fromkeys(keys, n), val_accuracy=0.5) for n in (1, 2)]
    many = build_table(runs).columns
    assert many[:8] == ["val/accuracy", "val/loss", "test/accuracy", *keys]
    few = build_table([make_record("a"), make_record("b", keys={"seed": 1})]).columns
    assert few[:2] == ["seed", "val/accuracy"]


def test_the_page_shows_the_run_and_its_score_first():
    table = build_table([make_record("a", val_accuracy=0.5), make_record("b", keys={"seed": 1})])
    assert table.page_columns[:4] == ["run", "val/accuracy", "test/accuracy", "seed"]
    assert sorted(table.page_columns) == sorted(table.columns)
    tested = build_table([make_record("a", test_accuracy=0.5)])
    assert tested.page_columns[:2] == ["run", "test/accuracy"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vgg11-32px-0a1b2c3d"], ["vgg11-32px"]),
        (["vgg11-32px-0a1b2c3d", "vgg16-32px-4e5f6a7b"], ["vgg11", "vgg16"]),
        (["a-lr1e-05-0a1b2c3d", "a-lr1e-04-4e5f6a7b"], ["lr1e-05", "lr1e-04"]),
        (["a-x-0a1b2c3d", "a-x-4e5f6a7b"], ["a-0a1b2c3d", "a-4e5f6a7b"]),
        (["a-x-0a1b2c3d", "a-y-4e5f6a7b", "my-x"], ["x", "y", "my-x"]),
        (["x-0a1b2c3d", "x-y-4e5f6a7b", "y"], ["x-0a1b2c3d", "y-4e5f6a7b", "y"]),
    ],
)
def test_short_names_are_what_differs(names, expected):
    assert short_names(names) == expected


def test_the_date_is_that_of_the_result(tmp_path):
    (tmp_path / "result.json").touch()
    os.utime(tmp_path / "result.json", (0, 1.7e9))
    (row,) = build_table([make_record("a")._replace(folder=tmp_path)]).rows
    assert row["date"] == datetime.fromtimestamp(1.7e9).strftime("%Y-%m-%d %H:%M")
    (row,) = build_table([make_record("a")]).rows
    assert row["date"] is None


def test_a_huge_loss_is_short():
    assert display_cell("val/loss", 2.5e13) == "2.5e+13"
    assert display_cell("val/loss", 99999.5) == "99999.5000"


def test_the_csv_of_several_data_sets_has_their_settings():
    runs = [make_record("a", val_accuracy=0.5), make_record("b", keys={"optimizer.lr": 0.5})]
    other = [make_record("c", "data=mnist"), make_record("d", "data=mnist", keys={"seed": 1})]
    sections = build_sections([*runs, *other])
    tables = [section.listed for section in sections]
    rows = list(csv.DictReader(to_csv(tables).splitlines()))
    assert [row["data"] for row in rows] == ["fashion_mnist"] * 2 + ["mnist"] * 2
    assert [row["optimizer.lr"] for row in rows] == ["0.01", "0.5", "0.01", "0.01"]
    assert [row["seed"] for row in rows] == ["0", "0", "0", "1"]


def test_the_best_runs_keep_the_means_of_all():
    runs = [
        make_record(
            f"{lr}-{seed}", keys={"optimizer.lr": lr, "seed": seed}, val_accuracy=lr + seed / 10
        )
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    (section,) = build_sections(runs, best=1)
    assert [row["run"] for row in section.listed.rows] == ["0.2-1"]
    assert len(section.listed.labels) == 1
    (mean_row,) = section.repeats
    assert mean_row["val/accuracy mean"] == pytest.approx(0.25)
    assert len(section.table.rows) == 4
