import os
import resource
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vggexp.loggers.tensorboard import TensorBoardLogger

HPARAMS = {"optimizer.lr": 0.01, "seed": 3, "arch.norm": "none", "device.compile": False}


def row(epoch):
    times = {"images_per_second": 70.0, "time/epoch_seconds": 100.0}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train/loss": 1 / epoch,
        "val/loss": 2 / epoch,
        **times,
    }


def refuse(message):
    raise AssertionError(message)


def begin(folder, rows=(), warn=refuse):
    folder.mkdir(exist_ok=True)
    return TensorBoardLogger(folder, HPARAMS, rows, warn)


def loaded(folder):
    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}
    ).Reload()


def points(folder):
    events = loaded(folder)
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def plugin(folder, tag):
    metadata = loaded(folder).SummaryMetadata(tag)
    return HParamsPluginData.FromString(metadata.plugin_data.content)


def test_a_run_is_one_file_with_the_keys_of_metrics_as_tags(tmp_path):
    board = begin(tmp_path / "run")
    for epoch in (1, 2, 3):
        board.epoch(row(epoch))
    board.final({"test/accuracy": 0.75, "train/loss": 9.0}, 3)
    board.close(ok=True)
    found = points(tmp_path / "run")
    assert found.keys() == row(1).keys() - {"epoch", "step"} | {"test/accuracy"}
    assert found["val/loss"] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert found["train/loss"][2:] == [
        (3, pytest.approx(1 / 3))
    ]  # each (tag, step) once, the first stays
    assert found["test/accuracy"] == [(3, 0.75)]
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert list(runs) == ["run"]


def test_a_continued_run_stands_once_in_one_later_file(tmp_path):
    first = begin(tmp_path)
    for epoch in (1, 2, 3):
        first.epoch(row(epoch))
    (before,) = os.listdir(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    second = begin(tmp_path, [row(1), row(2)])
    first.close(ok=False)
    (after,) = set(os.listdir(tmp_path)) - {"metrics.jsonl"}
    assert after > before
    second.epoch(row(3))
    second.close(ok=True)
    assert all([step for step, _ in series] == [1, 2, 3] for series in points(tmp_path).values())
    one, two, _ = loaded(tmp_path).Scalars("train/loss")
    assert two.wall_time - one.wall_time == pytest.approx(100)
    assert abs(two.wall_time - time.time()) < 60


def test_while_both_files_stand_each_point_is_shown_once(tmp_path, monkeypatch):
    begin(tmp_path).epoch(row(1))
    said = []
    monkeypatch.setattr(
        "pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("no"))
    )
    begin(tmp_path, [row(1)], said.append)
    assert len(os.listdir(tmp_path)) == 2 and len(said) == 1
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [1]


@pytest.mark.parametrize("ok, status", [(True, "STATUS_SUCCESS"), (False, "STATUS_FAILURE")])
def test_hyperparameters_keep_their_types_and_the_end_its_status(tmp_path, ok, status):
    begin(tmp_path).close(ok)
    values = plugin(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    read = {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}
    assert read == HPARAMS and read["device.compile"] is False
    end = plugin(tmp_path, "_hparams_/session_end_info").session_end_info
    assert (
        end.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[end.status].name
        == status
    )


def test_training_and_validation_share_a_chart(tmp_path):
    begin(tmp_path)
    (event,) = loaded(tmp_path).Tensors("custom_scalars__config__")
    charts = Layout.FromString(event.tensor_proto.string_val[0]).category[0].chart
    assert {chart.title: list(chart.multiline.tag)[:2] for chart in charts}.items() >= {
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["train/accuracy", "val/accuracy"],
    }.items()


def test_pictures_and_a_null_are_readable(tmp_path):
    board = begin(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    board.images("input", picture)
    board.epoch({"epoch": 1, "train/loss": None})
    board.images("test/confusion", picture, 2)
    board.close(ok=True)
    events = loaded(tmp_path)
    assert [
        (e.width, e.height, e.step) for tag in events.Tags()["images"] for e in events.Images(tag)
    ] == [
        (30, 20, 0),
        (30, 20, 2),
    ]
    assert np.isnan(events.Scalars("train/loss")[0].value)


def test_graph_is_written_or_silently_left_out(tmp_path, capfd, recwarn):
    torch = pytest.importorskip("torch")
    board = begin(tmp_path)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout())
    written = board.graph(model, torch.zeros(1, 1, 8, 8))
    assert board.graph(model, torch.zeros(1, 5, 8, 8)) is False
    board.close(ok=True)
    assert loaded(tmp_path).Tags()["graph"] is written
    assert model.training and not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("room, epochs", [(0, [1]), (200, [1, 2])])
def test_a_full_disk_is_told_once_and_leaves_what_was_readable(tmp_path, room, epochs):
    """Full while the history is written: the earlier file stays, alone; full later: the new one stays."""
    begin(tmp_path).epoch(row(1))
    (earlier,) = tmp_path.iterdir()
    said = []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (earlier.stat().st_size + room, limit[1]))
    try:
        board = begin(tmp_path, [row(1), row(2)], said.append)
        board.images("input", np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8))
        board.epoch(row(3))
        board.close(ok=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(said) == 1 and "File too large" in said[0]
    assert earlier.exists() == (epochs == [1]) and len(os.listdir(tmp_path)) == 1
    assert [step for step, _ in points(tmp_path)["train/loss"]] == epochs


@pytest.mark.parametrize("broken", ["missing", "file"])
def test_a_folder_that_cannot_be_used_is_told_once(tmp_path, broken):
    (tmp_path / "file").touch()
    said = []
    board = TensorBoardLogger(tmp_path / broken, HPARAMS, [], said.append)
    board.epoch(row(1))
    board.close(ok=True)
    assert len(said) == 1
