"""The classifier of tiny images notices labels that belong to other images, and nothing else."""

import pytest
import torch

from vggexp.check.labels import Sample, balanced_size, probe_labels, take_sample
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
    assert probe_labels(train, held_out, 10).recall > 0.8


def test_labels_of_their_own_images_are_no_guesses(digits):
    assert not is_guessing(*digits)


def test_labels_of_the_next_images_are_guesses(digits):
    train, held_out = digits
    assert is_guessing(shifted(train), shifted(held_out))


def test_training_labels_that_are_one_higher_are_guesses(digits):
    train, held_out = digits
    assert is_guessing([(images, (labels + 1) % 10) for images, labels in train], held_out)


def rare_sample(generator, shift, count):
    """Returns images of which every tenth is of class 1, whose first pixel is `shift` brighter."""
    labels = (torch.arange(count) % 10 == 0).long()
    pixels = torch.randn(count, 4, generator=generator, dtype=torch.double)
    pixels[:, 0] += shift * labels
    return Sample(pixels, labels)


@pytest.mark.parametrize(("shift", "is_guess"), [(2.9, False), (0, True)])
def test_a_rare_class_counts_as_much_as_the_others(shift, is_guess):
    """At 2.9 a pixel separates the classes well, and yet predicts few labels more than class 0."""
    generator = torch.Generator().manual_seed(0)
    train = rare_sample(generator, shift, 2000)
    probe = probe_labels(train, rare_sample(generator, shift, 500), 2)
    assert probe.chance == 0.5
    assert probe.is_guessing == is_guess


def test_the_recall_is_the_mean_of_the_classes():
    train = Sample(torch.tensor([[0.0], [1.0]] * 5).double(), torch.tensor([0, 1] * 5))
    held_out = Sample(torch.tensor([[0.0]] * 3 + [[1.0]]).double(), torch.tensor([0, 0, 1, 1]))
    assert probe_labels(train, held_out, 2).recall == 0.75
    uneven = Sample(held_out.pixels, torch.tensor([0, 0, 0, 0]))
    assert probe_labels(train, uneven, 2).recall == 0.75
    uneven = Sample(held_out.pixels, torch.tensor([0, 1, 1, 1]))
    assert probe_labels(train, uneven, 2).recall == pytest.approx(2 / 3)


@pytest.mark.parametrize(("counts", "size"), [([30, 30, 30], 90), ([90, 10], 36), ([8, 0], 8)])
def test_the_size_of_a_balanced_sample_that_says_as_much(counts, size):
    assert balanced_size(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))) == size
