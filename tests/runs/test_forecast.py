"""Tests the expected time of a run: which finished runs it is from, and its arithmetic."""

import json
import socket

import pytest

from tests.conftest import TINY, write_images
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.config.keys import to_plain
from vggexp.config.run_id import network_name
from vggexp.models.shapes import macs
from vggexp.runs import forecast
from vggexp.runs.directory import write_metadata, write_result
from vggexp.runs.forecast import ImageCounts, RunSpeed, expected_time, finished_speeds
from vggexp.sweep.expand import compose_run

COUNTS = ImageCounts(train=86, val=10, test=19)  # of TINY


def compose(*overrides):
    return compose_run(parse_command(["device=cpu", "device.precision=fp32", *TINY, *overrides]))


@pytest.fixture(scope="module")
def config():
    return compose()


def make_speed(config, folder, **fields):
    """Returns the speed of a run of this configuration, with other fields."""
    kind = forecast.run_kind(config, forecast.expected_machine(config, threads=4))
    size = macs(layers(config))
    speed = RunSpeed(folder, kind, network_name(config), size, train_seconds=3.0, eval_seconds=1.0)
    return speed._replace(**fields)


@pytest.mark.parametrize(
    ("runs", "rate"),
    [
        ([], None),
        ([{}], 3),
        ([{}, {"train_seconds": 5.0}, {"train_seconds": 4.0}], 4),  # the median
        ([{"network": "vgg13", "train_seconds": 9.0}, {}], 3),  # the same network comes first
        ([{"network": "vgg13", "train_seconds": 9.0}], 9),
    ],
)
def test_the_time_is_that_of_finished_runs(config, tmp_path, runs, rate):
    speeds = [make_speed(config, tmp_path / str(i), **fields) for i, fields in enumerate(runs)]
    found = expected_time(config, COUNTS, speeds, threads=4)
    if rate is None:
        assert found == forecast.UNKNOWN
    else:
        assert found.seconds == 2 * 86 * rate + 2 * 10 + 19
        assert len(found.sources) == len([run for run in runs if rate != 3 or run == {}])


@pytest.mark.parametrize(
    "other",
    [
        "device.threads=2",
        "device.precision=bf16",
        "device.processes=2",
        "device.channels_last=false",
        "device.compile=true",
    ],
)
def test_a_run_of_another_kind_predicts_nothing(config, tmp_path, other):
    speed = make_speed(compose(other), tmp_path)
    assert expected_time(config, COUNTS, [speed], threads=4) == forecast.UNKNOWN


@pytest.mark.parametrize(
    ("factor", "is_known"), [(1 / 8, True), (8, True), (0.9 / 8, False), (10, False)]
)
def test_the_time_is_scaled_by_the_multiply_adds(config, tmp_path, factor, is_known):
    size = macs(layers(config)) * factor
    found = expected_time(config, COUNTS, [make_speed(config, tmp_path, macs=size)], threads=4)
    if is_known:
        assert found.seconds == pytest.approx((2 * 86 * 3 + 2 * 10 + 19) / factor)
    else:
        assert found == forecast.UNKNOWN


def test_tests_after_each_epoch_and_pauses_count(tmp_path):
    config = compose("train.test_each_epoch=true", "train.rest_minutes=2")
    found = expected_time(config, COUNTS, [make_speed(config, tmp_path)], threads=4)
    assert found.seconds == 2 * 86 * 3 + 2 * 10 + 3 * 19 + 120


def test_mirror_images_of_the_test_count(tmp_path):
    speed = make_speed(compose(), tmp_path)
    found = expected_time(compose("train.test_flip=true"), COUNTS, [speed], threads=4)
    assert found.seconds == 2 * 86 * 3 + 2 * 10 + 2 * 19


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        (["run.until=1"], 86 * 3 + 10),
        (["run.until=1", "train.test_each_epoch=true"], 86 * 3 + 10 + 19),
        (["run.until=2"], 2 * (86 * 3 + 10) + 19 + 120),  # the last epoch
    ],
)
def test_a_run_that_pauses_is_not_tested(overrides, images, tmp_path):
    config = compose("train.rest_minutes=2", *overrides)
    found = expected_time(config, COUNTS, [make_speed(config, tmp_path)], threads=4)
    assert found.seconds == images


RESULT = {
    "epoch": 2,
    "seconds": 60.0,
    "images_per_second": 20.0,
    "time/evaluation_seconds": 7.8,  # of 2 x 10 and 19 images
    "train_images": 86,
    "val_images": 10,
    "test_images": 19,
}


def write_run(folder, config, result, state="finished", **environment):
    folder.mkdir()
    machine = {"device": "cpu", "precision": "fp32", "threads": 1, "processes": 1}
    machine |= {"host": socket.gethostname(), **environment}
    write_metadata(folder, to_plain(config), [], machine)
    write_result(folder, state, **result)


def test_a_finished_run_has_a_speed_without_its_start(config, tmp_path):
    write_run(tmp_path / "a", config, RESULT)
    (speed,) = finished_speeds(tmp_path, [forecast.expected_machine(config, 4)])
    assert speed.train_seconds == pytest.approx(1 / 20)
    assert speed.eval_seconds == pytest.approx(7.8 / 39)
    assert expected_time(config, COUNTS, [speed], 4).seconds == pytest.approx(86 * 2 / 20 + 7.8)


@pytest.mark.parametrize("until", [1, 2])
def test_a_finished_run_was_tested_whatever_its_last_command_was(until, tmp_path):
    """With train.patience a run may finish before the epoch of run.until."""
    config = compose("train.epochs=3", "train.patience=1", f"run.until={until}")
    write_run(tmp_path / "a", config, RESULT)
    (speed,) = finished_speeds(tmp_path, [forecast.expected_machine(config, 4)])
    assert speed.eval_seconds == pytest.approx(7.8 / 39)


def test_a_run_of_a_version_that_recorded_no_counts_has_those_of_its_data(config, tmp_path):
    write_run(tmp_path / "a", config, {k: v for k, v in RESULT.items() if "_images" not in k})
    (speed,) = finished_speeds(tmp_path, [forecast.expected_machine(config, 4)])
    assert speed.eval_seconds == pytest.approx(7.8 / 39)


def test_only_finished_runs_of_this_host_and_machine_count(config, tmp_path):
    write_run(tmp_path / "a", config, RESULT, host="elsewhere")
    write_run(tmp_path / "b", config, RESULT, state="interrupted")
    write_run(tmp_path / "c", config, RESULT, threads=8)
    write_run(tmp_path / "d", config, {**RESULT, "images_per_second": 0.0})
    write_run(tmp_path / "e", config, RESULT)
    (tmp_path / "e" / "result.json").write_text(json.dumps({"state": "finished", "epoch": "x"}))
    assert finished_speeds(tmp_path, [forecast.expected_machine(config, 4)]) == []


def test_the_images_of_a_folder_are_counted(tmp_path):
    write_images(tmp_path, {"train": 10, "test": 4}, lambda index: (8, 8), "png")
    folder = ["data=image_folder", "data.resize=32", "data.batch_size=8", "data.val_fraction=0.2"]
    config = compose_run(parse_command([*folder, f"data.root={tmp_path}", "data.test_limit=5"]))
    assert forecast.known_counts(config) is None
    assert forecast.count_run_images(config) == ImageCounts(train=16, val=4, test=5)
    assert forecast.epoch_passes(config, ImageCounts(16, 4, 5)) == 3 * 16 + 4


@pytest.mark.parametrize(("at_a_time", "seconds"), [(1, 9), (2, 6), (5, 4)])
def test_a_job_starts_when_another_has_ended(at_a_time, seconds):
    assert forecast.total_seconds([2, 1, 2, 4], at_a_time) == seconds
