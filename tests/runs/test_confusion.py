"""Confusions are counted by pairs of classes: the same counts as a matrix, in linear memory."""

import tracemalloc

import numpy
import pytest

from vggexp.runs.confusion import ConfusedPair, count_confusions

LABELS = numpy.array([0, 2, 2, 1, 2, 2])
PREDICTED = numpy.array([0, 1, 2, 0, 1, 0])


@pytest.fixture
def confusions():
    return count_confusions(LABELS, PREDICTED, 4)


def test_rows_are_true_and_columns_predicted_classes(confusions):
    rows = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0]]
    assert confusions.matrix().tolist() == rows


def test_images_and_correct_predictions_of_each_class(confusions):
    assert confusions.images().tolist() == [1, 1, 4, 0]
    assert confusions.correct().tolist() == [1, 0, 1, 0]


def test_the_most_frequent_mistakes_come_first(confusions):
    assert confusions.most_confused(2) == [ConfusedPair(2, 1, 2), ConfusedPair(1, 0, 1)]


def test_pairs_are_the_cells_that_are_not_empty(confusions):
    cells = {(pair.label, pair.predicted): pair.images for pair in confusions.pairs()}
    matrix = confusions.matrix()
    assert cells == {(i, j): matrix[i, j] for i, j in numpy.argwhere(matrix)}


def test_memory_does_not_grow_with_the_square_of_the_classes():
    labels = numpy.arange(100_000)
    tracemalloc.start()
    confusions = count_confusions(labels, labels[::-1], 100_000)
    assert confusions.correct().sum() == 0
    assert len(confusions.most_confused(5)) == 5
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000_000  # a matrix would take 80 GB
