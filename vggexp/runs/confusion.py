"""Counts which classes a run takes for which. Needs no torch."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_MATRIX_CLASSES = 1000  # of a matrix: a million cells. More classes are listed by pairs.


class ConfusedPair(NamedTuple):
    label: int
    predicted: int
    images: int


@dataclass(frozen=True, eq=False)
class Confusions:
    """Test images by true and predicted class: one entry for each pair of classes that occurs.

    The memory grows with the images and not with the square of the classes.

    Args:
        labels: [M], the true class of each pair.
        predicted: [M], the predicted class of each pair.
        counts: [M], images.
    """

    classes: int
    labels: Array
    predicted: Array
    counts: Array

    def matrix(self) -> Array:
        """Returns int64 [classes, classes], true class by predicted class, for few classes."""
        matrix = numpy.zeros((self.classes, self.classes), numpy.int64)
        matrix[self.labels, self.predicted] = self.counts
        return matrix

    def images(self) -> Array:
        """Returns int64 [classes]: the images of each true class."""
        return self._sum_by_label(numpy.ones(len(self.counts), bool))

    def correct(self) -> Array:
        """Returns int64 [classes]: the correctly predicted images of each true class."""
        return self._sum_by_label(self.labels == self.predicted)

    def pairs(self) -> list[ConfusedPair]:
        """Returns all pairs, in the order of their true and predicted class."""
        columns = (self.labels.tolist(), self.predicted.tolist(), self.counts.tolist())
        return [ConfusedPair(*row) for row in zip(*columns, strict=True)]

    def most_confused(self, count: int) -> list[ConfusedPair]:
        """Returns the `count` most frequent mistakes, the most frequent first."""
        mistakes = [pair for pair in self.pairs() if pair.label != pair.predicted]
        return sorted(mistakes, key=lambda pair: -pair.images)[:count]

    def _sum_by_label(self, chosen: Array) -> Array:
        sums = numpy.bincount(
            self.labels[chosen], weights=self.counts[chosen], minlength=self.classes
        )
        return sums.astype(numpy.int64)


def count_confusions(labels: Array, predicted: Array, classes: int) -> Confusions:
    """Counts images by true class and predicted class.

    Args:
        labels: integers [N], 0..classes-1.
        predicted: integers [N], 0..classes-1.
    """
    cells = labels.astype(numpy.int64) * classes + predicted
    pairs, counts = numpy.unique(cells, return_counts=True)
    return Confusions(classes, pairs // classes, pairs % classes, counts)
