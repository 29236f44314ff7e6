"""Tests what the loaders take from a configuration: which images, in which order, how changed."""

import contextlib
import os
import signal

import pytest
import torch
from torch.nn import functional

from tests.conftest import write_images
from tests.data.conftest import assert_same_batches
from vggexp.config.compose import parse_command
from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.datasets import synthetic_dataset
from vggexp.data.image_stats import channel_mean_std, color_basis
from vggexp.data.loaders import epoch_permutation
from vggexp.data.workers import ImageDecoder, decode_images
from vggexp.distributed import collectives
from vggexp.distributed.rank import RankInfo
from vggexp.runner.datasets import build_loaders
from vggexp.sweep.expand import compose_run

SYNTHETIC = ["data=synthetic", "data.images=40", "data.classes=4", "data.size=32"]
CPU = torch.device("cpu")


def loaders_of(*overrides):
    argv = ["device=cpu", "data.batch_size=8", "data.val_fraction=0.25", *overrides]
    return build_loaders(compose_run(parse_command(argv)), CPU)


def pixels(images):
    return [image.numpy().tobytes() for image in images]


def test_the_validation_images_are_set_aside():
    loaders = loaders_of(*SYNTHETIC)
    train = pixels(loaders.train.images)
    val = pixels(loaders.val.images)
    assert (len(train), len(val)) == (30, 10)
    assert sorted(train + val) == sorted(pixels(synthetic_dataset(40, 4, 1, 32).train.images))


def test_each_image_keeps_its_label():
    dataset = synthetic_dataset(40, 4, 1, 32).train
    labels = dict(zip(pixels(dataset.images), dataset.labels.tolist(), strict=True))
    loaders = loaders_of(*SYNTHETIC, "data.limit=20")
    for loader in (loaders.train, loaders.val):
        assert [labels[key] for key in pixels(loader.images)] == loader.labels.tolist()


def test_the_statistics_are_those_of_the_training_images():
    loaders = loaders_of(*SYNTHETIC)
    mean, std = channel_mean_std(loaders.train.images)
    assert torch.equal(loaders.preprocess.mean, mean)
    assert torch.equal(loaders.preprocess.std, std)


def test_a_limit_of_the_test_images_draws_the_same_for_every_seed():
    whole = pixels(loaders_of(*SYNTHETIC, "data.images=200").test.images)
    used = []
    for seed in (0, 1):
        loaders = loaders_of(*SYNTHETIC, "data.images=200", "data.test_limit=8", f"seed={seed}")
        used.append(pixels(loaders.test.images))
        assert torch.bincount(loaders.test.labels).tolist() == [2, 2, 2, 2]
    assert used[0] == used[1]
    assert set(used[0]) < set(whole)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_limit_of_the_test_images_of_a_folder(tmp_path, cache):
    write_images(tmp_path, {"train": 8, "test": 4}, lambda index: (32, 32), "png")
    folder = ["data=image_folder", f"data.root={tmp_path}", "data.resize=32", "data.workers=0"]
    whole = loaders_of(*folder, f"data.cache={cache}")
    loaders = loaders_of(*folder, f"data.cache={cache}", "data.test_limit=4")
    _, labels = next(iter(loaders.test.evaluate()))
    assert labels.tolist() == [0, 0, 1, 1]
    assert set(pixels(loaders.test_images(torch.arange(4)))) < set(
        pixels(whole.test_images(torch.arange(8)))
    )


def test_another_seed_draws_other_images_for_a_limit():
    used = []
    for seed in (0, 1):
        loaders = loaders_of(*SYNTHETIC, "data.limit=20", f"seed={seed}")
        used.append({*pixels(loaders.train.images), *pixels(loaders.val.images)})
        assert len(used[-1]) == 20
    assert used[0] != used[1]


def test_the_seed_gives_the_order():
    loader = loaders_of(*SYNTHETIC, "seed=7").train
    labels = torch.cat([labels for _, labels in loader.train(0)])
    assert torch.equal(labels, loader.labels[epoch_permutation(7, 0, 30)])


def test_only_training_images_are_augmented():
    loaders = loaders_of(*SYNTHETIC, "augment.flip=0.5", "augment.crop=3", "augment.erase=0.25")
    assert loaders.train.augment == Augment(flip=0.5, crop=3, erase=0.25)
    assert loaders.val.augment == loaders.test.augment == NO_AUGMENTATION


def test_an_evaluation_has_batches_of_one_ranks_size(monkeypatch):
    """Each rank evaluates whole batches, and needs no more memory than in training."""
    monkeypatch.setattr(collectives, "_STATE", collectives.ProcessGroupState(RankInfo(1, 2)))
    loaders = loaders_of(*SYNTHETIC)
    sizes = [loader.batch_size for loader in (loaders.train, loaders.val, loaders.test)]
    assert sizes == [8, 4, 4]


@pytest.fixture
def folder(tmp_path):
    """Overrides of a folder of twenty training images, which are decoded in every epoch."""
    write_images(tmp_path, {"train": 10, "test": 2}, lambda index: (32, 32), "png")
    options = ["data.resize=32", "data.workers=0", "data.cache=none", "arch=vgg_digits"]
    return ["data=image_folder", f"data.root={tmp_path}", "data.val_fraction=0", *options]


def test_a_share_of_the_epochs_only_flips(folder):
    for source in (SYNTHETIC, folder):
        strong = [*source, "train.epochs=4", "augment=strong", "augment.mixup=0.5"]
        ending = loaders_of(*strong, "augment.flip_only_fraction=0.5").train
        assert_same_batches(ending.train(1), loaders_of(*strong).train.train(1))
        flips = []
        for images, labels in loaders_of(*source, "augment=flip").train.train(2):
            flips.append((images, functional.one_hot(labels, ending.classes)))
        assert_same_batches(ending.train(2), flips)


def test_the_seed_gives_the_order_of_files(folder):
    loader = loaders_of(*folder, "seed=7").train
    labels = torch.cat([labels for _, labels in loader.train(0)])
    assert torch.equal(labels, loader.labels[epoch_permutation(7, 0, 20)])


def test_the_colors_of_a_folder_are_those_of_images_of_all_classes(folder, tmp_path):
    loader = loaders_of(*folder, "augment.color=0.1").train
    files = sorted((tmp_path / "train").rglob("*.png"))
    decoder = loader._pool.decoder
    assert sorted(decoder.paths) == files
    expected = color_basis(decode_images(decoder.paths, 32, 0))
    assert torch.equal(decoder.basis, expected)


@pytest.mark.process
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_replaced_worker_is_reported_to_the_caller(folder, cache, tmp_path, monkeypatch, capsys):
    decode = ImageDecoder.__getitem__

    def decode_or_die(self, request):
        with contextlib.suppress(FileExistsError):
            (tmp_path / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, request)

    monkeypatch.setattr(ImageDecoder, "__getitem__", decode_or_die)
    lines = []
    options = ["device=cpu", "data.batch_size=8", "data.workers=1", f"data.cache={cache}"]
    config = compose_run(parse_command([*folder, *options]))
    list(build_loaders(config, CPU, lines.append).train.train(0))
    assert lines == ["warning: a worker process was killed; it was replaced and nothing is lost"]
    assert capsys.readouterr().out == ""
