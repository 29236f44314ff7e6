"""Compares the bands that TensorBoard's reader loads with arithmetic."""

import os
import re
from math import nan, sqrt

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from vggexp.errors import ResourceError
from vggexp.sweep.tensorboard import folder_name, write_means


def history(*losses):
    return [{"epoch": epoch, "train/loss": loss} for epoch, loss in enumerate(losses, 1)]


def load(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def points(events):
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize(
    ("histories", "epochs"),
    [  # epoch: mean, sample standard deviation
        ([history(1, 2), history(3, 2)], {1: (2, sqrt(2)), 2: (2, 0)}),
        (
            [history(1, 5, 9), history(3), history(5, 8)],
            {1: (3, 2), 2: (6.5, sqrt(4.5)), 3: (9, 0)},
        ),
        ([history(0.5, 0.25)], {1: (0.5, 0), 2: (0.25, 0)}),
        ([history(1, None, None), history(2, 3, None)], {1: (1.5, sqrt(0.5)), 2: (3, 0)}),
        ([history(4, 6), []], {1: (4, 0), 2: (6, 0)}),
    ],
    ids=["even", "one ended early", "single", "null is left out", "one without epochs"],
)
def test_mean_and_spread(tmp_path, histories, epochs):
    write_means(tmp_path, {"lr=1": histories})
    name = "repeats/loss/train"
    series = points(load(tmp_path / "repeats" / "lr=1"))
    assert series.keys() == {name, f"{name} mean-sd", f"{name} mean+sd"}
    for tag, sign in ((name, 0), (f"{name} mean-sd", -1), (f"{name} mean+sd", 1)):
        expected = []
        for epoch, (mean, std) in epochs.items():
            expected.append((epoch, pytest.approx(mean + sign * std)))
        assert series[tag] == expected


def test_each_setting_is_a_run_of_its_own(tmp_path):
    (tmp_path / "sweeps").mkdir()
    histories = [history(1), history(2)]
    write_means(tmp_path / "sweeps", {"lr=1": histories, "arch.blocks=[1,2],root=a/b": histories})
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    first, second = sorted(runs)
    assert first.startswith("sweeps/repeats/arch.blocks=[1,2],root=a_b-")
    assert second == "sweeps/repeats/lr=1"


def test_a_long_label_is_a_name_that_a_file_system_takes():
    names = {folder_name("k=" + "1" * 300 + end) for end in "ab"}
    assert [len(name) for name in names] == [209, 209]


def test_the_charts_match_the_lines_of_all_settings(tmp_path):
    rows = [{"epoch": 1, "val/accuracy": 0.5, "val/loss": 1.0, "train/loss": 2.0, "lr": 0.1}]
    write_means(tmp_path, {"lr=1": [rows, rows]})
    events = load(tmp_path / "repeats" / "lr=1")
    (config,) = events.Tensors("custom_scalars__config__")
    means, bands = Layout.FromString(config.tensor_proto.string_val[0]).category
    matches = {}
    for section in (means, bands):
        for chart in section.chart:
            (pattern,) = chart.multiline.tag
            lines = [tag for tag in points(events) if re.match(pattern, tag)]
            matches.setdefault(chart.title, []).append(len(lines))
    assert matches == {
        "val/accuracy": [1, 3],
        "val/loss": [1, 3],
        "train/accuracy": [0, 0],
        "train/loss": [1, 3],
    }


def test_a_second_write_replaces_the_earlier_file(tmp_path):
    write_means(tmp_path, {"a": [history(1, 2), history(1, 2)]})
    write_means(tmp_path, {"a": [history(1, 4), history(3, 4)]})
    setting = tmp_path / "repeats" / "a"
    assert points(load(setting))["repeats/loss/train"] == [(1, 2.0), (2, 4.0)]
    assert sorted(path.stat().st_size > 0 for path in setting.iterdir()) == [False, True]


def test_an_error_keeps_the_earlier_file(tmp_path, monkeypatch):
    write_means(tmp_path, {"a": [history(1), history(2)]})
    before = os.listdir(tmp_path / "repeats" / "a")

    def raise_error(*_):
        raise OSError("full")

    monkeypatch.setattr("vggexp.loggers.event_files.RecordWriter.write", raise_error)
    with pytest.raises(OSError, match="full"):
        write_means(tmp_path, {"a": [history(nan), history(2)]})
    assert os.listdir(tmp_path / "repeats" / "a") == before


@pytest.mark.parametrize("name", ["repeats", "repeats/a"])
def test_no_events_are_written_or_removed_through_a_link(name, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    (others / "events.out.tfevents.1.host").write_text("notes")
    link = tmp_path / "sweep" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(others)
    with pytest.raises(ResourceError, match="a link, and no file is written through links"):
        write_means(tmp_path / "sweep", {"a": [history(1)]})
    assert [path.name for path in others.iterdir()] == ["events.out.tfevents.1.host"]
