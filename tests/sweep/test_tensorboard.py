"""Compares the bands that TensorBoard's reader loads with arithmetic."""

import os
from math import nan, sqrt

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from vggexp.sweep.tensorboard import write_means


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
    write_means(tmp_path, {"arch.blocks=[1,2],seed=a/b": histories})
    name = "repeats/train/loss/arch.blocks=[1,2],seed=a/b"
    series = points(load(tmp_path))
    assert series.keys() == {name, f"{name} mean-sd", f"{name} mean+sd"}
    for tag, sign in ((name, 0), (f"{name} mean-sd", -1), (f"{name} mean+sd", 1)):
        expected = []
        for epoch, (mean, std) in epochs.items():
            expected.append((epoch, pytest.approx(mean + sign * std)))
        assert series[tag] == expected


def test_the_charts_name_exactly_the_existing_series(tmp_path):
    rows = [{"epoch": 1, "val/accuracy": 0.5, "val/loss": 1.0, "train/loss": None, "lr": 0.1}]
    write_means(tmp_path, {"lr=1": [rows, rows], "lr=2": [rows[:0], history(1)], "lr=3": [[], []]})
    events = load(tmp_path)
    (config,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(config.tensor_proto.string_val[0]).category
    assert category.title == f"repeats: {tmp_path.name}"
    series = {chart.title: chart.margin.series for chart in category.chart}
    assert {title: [line.value for line in lines] for title, lines in series.items()} == {
        "val/accuracy": ["repeats/val/accuracy/lr=1"],
        "val/loss": ["repeats/val/loss/lr=1"],
        "train/loss": ["repeats/train/loss/lr=2"],
    }
    names = []
    for lines in series.values():
        for line in lines:
            names += [line.value, line.lower, line.upper]
    assert sorted(names) == sorted(points(events))


def test_a_second_write_replaces_the_earlier_file(tmp_path):
    write_means(tmp_path, {"a": [history(1, 2), history(1, 2)]})
    write_means(tmp_path, {"a": [history(1, 4), history(3, 4)]})
    assert points(load(tmp_path))["repeats/train/loss/a"] == [(1, 2.0), (2, 4.0)]
    assert sorted(path.stat().st_size > 0 for path in tmp_path.iterdir()) == [False, True]


def test_an_error_keeps_the_earlier_file(tmp_path, monkeypatch):
    write_means(tmp_path, {"a": [history(1), history(2)]})
    before = os.listdir(tmp_path)

    def raise_error(*_):
        raise OSError("full")

    monkeypatch.setattr("vggexp.loggers.event_files.RecordWriter.write", raise_error)
    with pytest.raises(OSError, match="full"):
        write_means(tmp_path, {"a": [history(nan), history(2)]})
    assert os.listdir(tmp_path) == before
