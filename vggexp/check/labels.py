"""Whether labels belong to their images: a linear classifier of tiny images, fitted in one step.

All classes count the same, however many images each has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vggexp.training.step import Batch

SIDE = 8  # pixels of the tiny images
RIDGE = 1e-2  # relative to the mean variance of a pixel
MIN_DEVIATIONS = 2  # standard deviations above chance, from which a classifier is not guessing


class Sample(NamedTuple):
    """Tiny images [N, pixels] and their labels [N], on the CPU."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Probe:
    """How well the classifier predicts labels that it has not seen."""

    recall: float  # mean of the classes
    chance: float  # the mean recall of guesses
    images: int  # of a balanced sample in which the mean recall of guesses varies as much

    @property
    def is_guessing(self) -> bool:
        deviation = sqrt(self.chance * (1 - self.chance) / self.images)
        return self.recall < self.chance + MIN_DEVIATIONS * deviation


def take_sample(batches: Iterable[Batch], count: int) -> Sample:
    """Returns at most `count` images of the first batches."""
    pixels = []
    labels = []
    taken = 0
    for images, batch_labels in batches:
        images = images[: count - taken]
        tiny = functional.adaptive_avg_pool2d(images.float(), SIDE)
        pixels.append(tiny.flatten(1).cpu().double())
        labels.append(batch_labels[: len(images)].cpu())
        taken += len(images)
        if taken >= count:
            break
    return Sample(torch.cat(pixels), torch.cat(labels))


def balanced_size(labels: Tensor) -> int:
    """Returns the size of a balanced sample whose mean recall varies as much.

    The variance of a class's recall goes with 1 / its images, so a rare class decides. A balanced
    sample has its own size.
    """
    counts = labels.bincount()
    counts = counts[counts > 0].double()
    return round(len(counts) ** 2 / counts.reciprocal().sum().item())


def probe_labels(train: Sample, held_out: Sample, classes: int) -> Probe:
    """Fits least squares with a small penalty to `train`, and predicts `held_out`."""
    image_weights = _equal_class_weights(train.labels)
    targets = functional.one_hot(train.labels, classes).double()
    mean = (image_weights * train.pixels).mean(0)
    target_mean = (image_weights * targets).mean(0)
    pixels = train.pixels - mean
    covariance = pixels.T @ (image_weights * pixels)
    penalty = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    covariance.diagonal().add_(penalty)
    products = pixels.T @ (image_weights * (targets - target_mean))
    scores = (held_out.pixels - mean) @ torch.linalg.solve(covariance, products) + target_mean
    labels = held_out.labels
    counts = labels.bincount(minlength=classes)
    hits = labels[scores.argmax(1) == labels].bincount(minlength=classes)
    recalls = hits[counts > 0].double() / counts[counts > 0]
    return Probe(recalls.mean().item(), 1 / len(recalls), balanced_size(labels))


def _equal_class_weights(labels: Tensor) -> Tensor:
    """Returns weights [N, 1] of mean 1 for images, with the same sum for each class."""
    counts = labels.bincount()
    classes = (counts > 0).sum()
    return (len(labels) / (classes * counts[labels]).double())[:, None]
