"""The classifier of tiny images notices labels that belong to other images, and nothing else."""

import pytest
import torch

from vggexp.check.labels import probe_labels, take_sample
from vggexp.data.datasets import load_dataset


@pytest.fixture(scope="module")
def digits():
    splits = load_dataset("digits", None, False)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    images = splits.train.images[order].float()
    batches = list(zip(images.split(100), splits.train.labels[order].split(100), strict=True))
    return batches[:7], batches[7:]


def is_guessing(train_batches, held_out_batches, classes=10):
    train = take_sample(train_batches, 700)
    return probe_labels(train, take_sample(held_out_batches, 300), classes).is_guessing


def shifted(batches):
    """Returns the batches with each label at the next image."""
    return [(images, labels.roll(1)) for images, labels in batches]


def test_a_sample_has_the_first_images(digits):
    train_batches, _ = digits
    sample = take_sample(train_batches, 150)
    assert len(sample.labels) == 150
    assert torch.equal(sample.labels[:100], train_batches[0][1])


def test_digits_are_told_apart_by_their_pixels(digits):
    train, held_out = (take_sample(batches, 400) for batches in digits)
    assert probe_labels(train, held_out, 10).accuracy > 0.8


def test_labels_of_their_own_images_are_no_guesses(digits):
    assert not is_guessing(*digits)


def test_labels_of_the_next_images_are_guesses(digits):
    train, held_out = digits
    assert is_guessing(shifted(train), shifted(held_out))


def test_training_labels_that_are_one_higher_are_guesses(digits):
    train, held_out = digits
    assert is_guessing([(images, (labels + 1) % 10) for images, labels in train], held_out)


def test_chance_is_the_share_of_the_largest_class():
    images = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1] * 30)
    sample = take_sample([(images, labels)], 90)
    assert probe_labels(sample, sample, 2).chance == pytest.approx(2 / 3)
