"""The benchmark times every part and leaves the loop as a run has it."""

from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from tests.conftest import TINY, write_images
from tests.factories import Blobs
from vggexp.bench.__main__ import format_result, main
from vggexp.bench.layers import time_layers, write_trace
from vggexp.bench.measure import RATES, benchmark, full_batches
from vggexp.check.checks import write_sheet
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError
from vggexp.runner import datasets
from vggexp.sweep.expand import compose_run
from vggexp.training.dead_layers import DeadLayerCheck, Diagnosis


@pytest.fixture(scope="module")
def result():
    return benchmark(compose_run(parse_command(TINY)), product_size=64, rounds=1)


@pytest.mark.catalog
def test_the_keys_of_the_result(result):
    assert list(asdict(result)) == [
        "device",
        "precision",
        "threads",
        "batch_size",
        "images_per_second",
        "product_side",
        "product_gflops",
        "step_gflops",
        "step_over_product",
        "runner_over_step",
    ]


@pytest.mark.catalog
def test_every_part_takes_time(result):
    assert tuple(result.images_per_second) == RATES
    assert min(result.images_per_second.values()) > 0
    assert result.product_gflops > 0
    assert result.step_gflops > 0
    assert result.runner_over_step > 0
    ratio = result.step_gflops / result.product_gflops
    assert result.step_over_product == pytest.approx(ratio)
    assert result.batch_size == 32
    assert result.threads == 1


@pytest.mark.catalog
def test_the_text_of_the_result(result):
    lines = format_result(result).splitlines()
    assert lines[0].endswith("1 thread, batch 32")
    assert [line[:18].strip() for line in lines[1:]] == [*RATES, "matrix product", "step", "runner"]
    assert "(best of 64 x 64)" in lines[5]


def test_a_benchmark_checks_no_layers(monkeypatch):
    monkeypatch.setattr(DeadLayerCheck, "diagnose", lambda *_: Diagnosis("dead", True))
    config = compose_run(parse_command([*TINY, "train.probe_steps=1", "train.stop_if_dead=true"]))
    assert benchmark(config, product_size=64, rounds=1).step_gflops > 0


def test_a_benchmark_times_the_epochs_with_all_augmentation(monkeypatch):
    augments = []
    build = datasets.build_checked_loaders

    def build_and_remember(*arguments):
        data = build(*arguments)
        augments.append(data.train.augment)
        return data

    monkeypatch.setattr(datasets, "build_checked_loaders", build_and_remember)
    options = [*TINY, "train.epochs=2", "augment.flip_only_fraction=0.5", "augment=strong"]
    benchmark(compose_run(parse_command(options)), product_size=64, rounds=1)
    assert [augment.flip_only_from for augment in augments] == [None]


def test_several_processes_are_refused(capsys):
    assert main([*TINY, "device.processes=2"]) == 2
    assert "device.processes=2: one process is timed; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "measure",
    [
        benchmark,
        time_layers,
        partial(write_trace, path=Path("trace.json")),
        partial(write_sheet, path=Path("sheet.png")),
    ],
)
def test_a_batch_above_the_images_of_a_folder_is_refused(measure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), {"train": 10, "test": 3}, lambda index: (40, 36), "png")
    folder = ["data=image_folder", "data.root=images", "data.resize=32", "data.val_fraction=0"]
    config = compose_run(parse_command([*folder, "data.workers=0", "device=cpu"]))
    with pytest.raises(ConfigError, match="batch_size=128: more than the 20"):
        measure(config)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_one_stream_of_image_files_serves_all_parts(tmp_path, monkeypatch):
    """The workers serve one iteration at a time."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), {"train": 5, "test": 1}, lambda index: (8, 8), "png")
    folder = ["data=image_folder", "data.root=images", "data.resize=8", "data.val_fraction=0"]
    small = ["data.batch_size=4", "arch.blocks=[[1,2]]", "arch.hidden=[]", "device=cpu"]
    config = compose_run(parse_command([*folder, *small, "data.workers=1"]))
    assert benchmark(config, product_size=64, rounds=1).batch_size == 4


def test_a_smaller_last_batch_is_not_timed():
    batches = islice(full_batches(Blobs(), 8), 3)
    assert [len(images) for images, _ in batches] == [8, 8, 8]
