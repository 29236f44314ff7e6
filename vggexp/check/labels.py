"""Whether labels belong to their images: a linear classifier of tiny images, fitted in one step."""

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

    accuracy: float
    chance: float  # share of the most frequent class
    images: int

    @property
    def is_guessing(self) -> bool:
        deviation = sqrt(self.chance * (1 - self.chance) / self.images)
        return self.accuracy < self.chance + MIN_DEVIATIONS * deviation


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


def probe_labels(train: Sample, held_out: Sample, classes: int) -> Probe:
    """Fits least squares with a small penalty to `train`, and predicts `held_out`."""
    mean = train.pixels.mean(0)
    pixels = train.pixels - mean
    targets = functional.one_hot(train.labels, classes).double()
    covariance = pixels.T @ pixels
    penalty = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    covariance.diagonal().add_(penalty)
    weights = torch.linalg.solve(covariance, pixels.T @ (targets - targets.mean(0)))
    scores = (held_out.pixels - mean) @ weights + targets.mean(0)
    correct = scores.argmax(1) == held_out.labels
    chance = held_out.labels.bincount().max() / len(held_out.labels)
    return Probe(correct.double().mean().item(), chance.item(), len(held_out.labels))
