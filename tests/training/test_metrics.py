"""Scores of probabilities against arithmetic."""

from math import log

import numpy
import pytest
import torch

from vggexp.training.metrics import (
    MIN_PROB,
    calibration_error,
    classification_metrics,
    top_k_accuracy,
)

SCORES = torch.tensor(
    [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05]], dtype=torch.float64
)
LABELS = torch.tensor([0, 1, 0, 1])


def test_quality():
    assert classification_metrics(SCORES, LABELS, "test") == {
        "test/accuracy": 0.5,
        "test/top5_accuracy": 1.0,
        "test/loss": pytest.approx(-(log(0.7) + log(0.3) + log(0.1) + log(0.9)) / 4),
        "test/calibration_error": pytest.approx(
            (0.3 + 0.5 + 0.6 + 0.1) / 4
        ),  # each in a bin of its own
    }


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (2, 0.75), (3, 1), (9, 1)])
def test_within_best(count, share):
    assert top_k_accuracy(SCORES, LABELS, count) == share


def test_a_loss_stays_finite():
    assert classification_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "x")[
        "x/loss"
    ] == pytest.approx(-log(MIN_PROB))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_by_hand(bins):
    draw = numpy.random.default_rng(0)
    scores, labels = draw.dirichlet(numpy.full(4, 0.5), 500), draw.integers(0, 4, 500)
    scores[:2] = [[1, 0, 0, 0], [0.25] * 4]
    confidence, right = scores.max(1), scores.argmax(1) == labels
    wanted = 0.0
    for place in range(bins):
        inside = (confidence > place / bins) & (confidence <= (place + 1) / bins)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(
        torch.from_numpy(scores), torch.from_numpy(labels), bins
    ) == pytest.approx(wanted)


def test_perfect_calibration():
    scores = torch.tensor([[0.75, 0.25]] * 4)
    assert calibration_error(scores, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-7)
