"""TensorBoardLogger, as TensorBoard's own readers load its event files."""

import itertools
import os
import re
import resource
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import DataType
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.tensorboard import TensorBoardLogger, scalar_tag

HPARAMS = {"optimizer.lr": 0.01, "seed": 3, "arch.norm": "none", "device.compile": False}
TABLE = HParamsTable(HPARAMS, ["arch.norm", "optimizer.lr", "device.compile"], ["optimizer.lr"])


def row(epoch):
    times = {"images_per_second": 70.0, "time/epoch_seconds": 100.0}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train/loss": 1 / epoch,
        "val/loss": 2 / epoch,
        **times,
    }


def point(step, epoch):
    return {"epoch": epoch, "step": step, "lr": 0.1, "loss": 1 / step, "gradient_norm": None}


def fail(message):
    raise AssertionError(message)


@pytest.fixture
def open_logger():
    """Opens loggers, and closes at the end those that a test leaves open as a killed run would."""
    loggers = []

    def open_one(folder, rows=(), warn=fail, steps=()):
        folder.mkdir(exist_ok=True)
        logger = TensorBoardLogger(folder, TABLE, rows, warn, steps)
        loggers.append(logger)
        return logger

    yield open_one
    for logger in loggers:
        logger.close(ok=False)


def load(folder):
    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}
    ).Reload()


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def points(folder):
    events = load(folder)
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def plugin(folder, tag):
    metadata = load(folder).SummaryMetadata(tag)
    return HParamsPluginData.FromString(metadata.plugin_data.content)


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("train/loss", "loss/train"),
        ("val/accuracy", "accuracy/val"),
        ("lr", "lr"),
        ("images_per_second", "time/images_per_second"),
        ("time/data_seconds", "time/data_seconds"),
        ("test/top5_accuracy", "test/top5_accuracy"),
    ],
)
def test_a_tag_begins_with_the_metric(key, tag):
    assert scalar_tag(key) == tag


def test_a_run_is_one_file_with_the_keys_of_metrics_as_tags(open_logger, tmp_path):
    logger = open_logger(tmp_path / "run")
    for epoch in (1, 2, 3):
        logger.epoch(row(epoch))
    logger.final({"test/accuracy": 0.75, "train/loss": 9.0}, 2)  # of the best weights
    logger.close(ok=True)
    series = points(tmp_path / "run")
    keys = row(1).keys() - {"epoch", "step"} | {"test/accuracy"}
    assert series.keys() == {scalar_tag(key) for key in keys}
    assert series["loss/val"] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    # Each (tag, step) exists once; the first value stays.
    assert series["loss/train"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert series["accuracy/test"] == [(2, 0.75)]
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert list(runs) == ["run"]


def event_files(folder):
    """Returns the sizes of the event files by name, in the order in which loaders read them."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("events*"))}


def test_a_resumed_run_exists_once_in_one_later_file(open_logger, tmp_path):
    first = open_logger(tmp_path)
    for epoch in (1, 2, 3):
        first.epoch(row(epoch))
    first.close(ok=False)
    (before,) = event_files(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    second = open_logger(tmp_path, [row(1), row(2)])
    second.epoch(row(3))
    second.close(ok=True)
    assert next(iter(event_files(tmp_path))) == before
    assert [size > 0 for size in event_files(tmp_path).values()] == [False, True]
    assert (tmp_path / "metrics.jsonl").exists()
    assert all([step for step, _ in series] == [1, 2, 3] for series in points(tmp_path).values())
    one, two, _ = load(tmp_path).Scalars("loss/train")
    assert two.wall_time - one.wall_time == pytest.approx(100)
    assert abs(two.wall_time - time.time()) < 60


def test_open_loaders_show_the_epochs_of_a_resumed_run(open_logger, tmp_path):
    first = open_logger(tmp_path / "run")
    for epoch in (1, 2, 3):
        first.epoch(row(epoch))
    first.close(ok=False)
    loader = load(tmp_path / "run")
    server = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    for last in (4, 5):  # two attempts between two polls of the server
        attempt = open_logger(tmp_path / "run", [row(1), row(2)])
        for epoch in range(3, last + 1):
            attempt.epoch(row(epoch))
        attempt.close(ok=True)
        steps = [point.step for point in loader.Reload().Scalars("loss/val")]
        assert steps == list(range(1, last + 1))
    steps = [point.step for point in server.Reload().Scalars("run", "loss/val")]
    assert steps == [1, 2, 3, 4, 5]


def test_an_emptied_file_is_removed_in_the_end(open_logger, tmp_path):
    for _ in range(3):
        open_logger(tmp_path).close(ok=True)
    sizes = event_files(tmp_path)
    assert [size > 0 for size in sizes.values()] == [False, False, True]
    oldest = next(iter(sizes))
    os.utime(tmp_path / oldest, (0, 0))
    open_logger(tmp_path)
    assert oldest not in event_files(tmp_path)
    assert len(event_files(tmp_path)) == 3


def test_a_link_among_the_event_files_is_not_followed(open_logger, tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.out.tfevents.0000000001.host.1").symlink_to(notes)
    open_logger(folder)
    assert notes.read_text() == "mine"
    assert len(event_files(folder)) == 1


def test_each_point_is_shown_once_while_both_files_exist(open_logger, tmp_path, monkeypatch):
    open_logger(tmp_path).epoch(row(1))
    warnings = []
    monkeypatch.setattr("pathlib.Path.lstat", lambda _: (_ for _ in ()).throw(OSError("no")))
    open_logger(tmp_path, [row(1)], warnings.append)
    monkeypatch.undo()
    assert all(event_files(tmp_path).values())
    assert len(event_files(tmp_path)) == 2
    assert len(warnings) == 1
    assert [step for step, _ in points(tmp_path)["loss/train"]] == [1]


@pytest.mark.parametrize("ok, status", [(True, "STATUS_SUCCESS"), (False, "STATUS_FAILURE")])
def test_hyperparameters_keep_their_types_and_the_end_has_a_status(
    open_logger, tmp_path, ok, status
):
    open_logger(tmp_path).close(ok)
    values = plugin(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    read = {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}
    assert read == HPARAMS
    assert read["device.compile"] is False
    end = plugin(tmp_path, "_hparams_/session_end_info").session_end_info
    assert (
        end.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[end.status].name
        == status
    )


def test_the_columns_of_the_table_are_marked_hyperparameters_and_the_scores(open_logger, tmp_path):
    open_logger(tmp_path)
    experiment = plugin(tmp_path, "_hparams_/experiment").experiment
    types = {info.name: DataType.Name(info.type) for info in experiment.hparam_infos}
    assert types == {
        "arch.norm": "DATA_TYPE_STRING",
        "optimizer.lr": "DATA_TYPE_FLOAT64",
        "device.compile": "DATA_TYPE_BOOL",
    }
    assert [info.name for info in experiment.hparam_infos if info.differs] == ["optimizer.lr"]
    scores = [info.name.tag for info in experiment.metric_infos]
    assert scores == ["accuracy/val", "accuracy/test", "loss/val", "loss/test"]


def test_a_chart_has_one_line_for_each_run(open_logger, tmp_path):
    logger = open_logger(tmp_path)
    logger.epoch(row(1) | {"train/accuracy": 0.5, "val/accuracy": 0.5})
    logger.final({"test/accuracy": 0.5, "test/loss": 2.0}, 1)
    tags = points(tmp_path)
    (event,) = load(tmp_path).Tensors("custom_scalars__config__")
    sections = Layout.FromString(event.tensor_proto.string_val[0]).category
    assert [section.title for section in sections] == ["accuracy", "loss", "time"]
    lines = {}
    for chart in itertools.chain.from_iterable(section.chart for section in sections):
        (pattern,) = chart.multiline.tag
        lines[chart.title] = [tag for tag in tags if re.match(pattern, tag)]
    assert lines == {
        "accuracy, validation": ["accuracy/val"],
        "accuracy, training": ["accuracy/train"],
        "accuracy, test": ["accuracy/test"],
        "loss, validation": ["loss/val"],
        "loss, training": ["loss/train"],
        "loss, test": ["loss/test"],
        "seconds of an epoch": ["time/epoch_seconds"],
        "images per second": ["time/images_per_second"],
    }


def test_the_steps_are_a_section_against_optimizer_steps(open_logger, tmp_path):
    logger = open_logger(tmp_path)
    logger.step(point(2, 1))
    logger.step(point(4, 1))
    series = points(tmp_path)
    assert series.keys() == {"step/lr", "step/loss", "step/gradient_norm"}
    assert series["step/loss"] == [(2, 0.5), (4, 0.25)]
    assert np.isnan(series["step/gradient_norm"][0][1])


def test_a_resumed_run_has_each_step_once_within_its_epoch(open_logger, tmp_path):
    steps = [point(step, 1 + step // 11) for step in (5, 10, 15, 25)]
    logger = open_logger(tmp_path, [row(1), row(2)], steps=steps)
    logger.step(point(25, 3))
    logger.step(point(30, 3))
    events = load(tmp_path).Scalars("step/loss")
    assert [event.step for event in events] == [5, 10, 15, 25, 30]
    first, _ = load(tmp_path).Scalars("loss/train")
    times = [event.wall_time for event in events]
    assert times == sorted(times)
    assert times[0] == pytest.approx(first.wall_time - 50)
    assert times[1] == pytest.approx(first.wall_time)


def test_images_and_a_null_are_readable(open_logger, tmp_path):
    logger = open_logger(tmp_path)
    image = random_image(20, 30)
    logger.images("input", image)
    logger.epoch({"epoch": 1, "train/loss": None})
    logger.images("test/confusion", image, 2)
    logger.close(ok=True)
    events = load(tmp_path)
    for tag, step in (("input", 0), ("test/confusion", 2)):
        (event,) = events.Images(tag)
        assert (event.width, event.height, event.step) == (30, 20, step)
    assert np.isnan(events.Scalars("loss/train")[0].value)


def test_a_graph_is_written_or_left_out_without_a_warning(open_logger, tmp_path, capfd, recwarn):
    torch = pytest.importorskip("torch")
    logger = open_logger(tmp_path)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout())
    written = logger.graph(model, torch.zeros(1, 1, 8, 8))
    assert logger.graph(model, torch.zeros(1, 5, 8, 8)) is False
    logger.close(ok=True)
    assert load(tmp_path).Tags()["graph"] is written
    assert model.training
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_graph_is_torchs_without_its_check(open_logger, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    graphs = pytest.importorskip("torch.utils.tensorboard._pytorch_graph")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout())
    example = torch.zeros(1, 1, 8, 8)
    expected, _ = graphs.graph(model, example)
    monkeypatch.delattr("torch.jit._trace._check_trace")
    logger = open_logger(tmp_path)
    logger.graph(model, example)
    logger.close(ok=True)
    assert load(tmp_path).Graph() == expected


@pytest.mark.parametrize("spare_bytes, epochs", [(0, [1]), (200, [1, 2])])
def test_a_full_disk_is_one_warning_and_leaves_a_readable_file(
    open_logger, tmp_path, spare_bytes, epochs
):
    """If the disk is full while the history is written, only the earlier file stays.

    If the disk is full later, only the new file stays.
    """
    open_logger(tmp_path).epoch(row(1))
    (earlier,) = tmp_path.iterdir()
    warnings = []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (earlier.stat().st_size + spare_bytes, limit[1]))
    try:
        logger = open_logger(tmp_path, [row(1), row(2)], warnings.append)
        logger.images("input", random_image(9, 9))
        logger.epoch(row(3))
        logger.close(ok=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(warnings) == 1
    assert "File too large" in warnings[0]
    assert (earlier.stat().st_size > 0) == (epochs == [1])
    assert sum(size > 0 for size in event_files(tmp_path).values()) == 1
    assert [step for step, _ in points(tmp_path)["loss/train"]] == epochs


@pytest.mark.parametrize("broken", ["missing", "file"])
def test_an_unusable_folder_is_one_warning(tmp_path, broken):
    (tmp_path / "file").touch()
    warnings = []
    logger = TensorBoardLogger(tmp_path / broken, TABLE, [], warnings.append)
    logger.epoch(row(1))
    logger.close(ok=True)
    assert len(warnings) == 1
