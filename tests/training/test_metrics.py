"""Metrics against arithmetic: every image counts once, and the model stays as it was."""

import contextlib
from functools import partial
from math import log

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss

from tests.factories import CPU, make_model
from vggexp.data.image_views import ImageViews
from vggexp.distributed import collectives
from vggexp.distributed.rank import RankInfo
from vggexp.models.transfer import freeze, train_mode
from vggexp.training.metrics import (
    MIN_PROB,
    MetricSums,
    calibration_error,
    classification_metrics,
    evaluate,
    log_mean_softmax,
    point_interval,
    predict,
    score_logits,
    top_k_accuracy,
)

FP32 = contextlib.nullcontext
BF16 = partial(torch.autocast, "cpu", torch.bfloat16)
DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.randn(10, 1, 4, 4, generator=DRAWS)
LABELS = torch.randint(3, (10,), generator=DRAWS)


@pytest.fixture
def model() -> nn.Module:
    return make_model(seed=1, norm="batch", hidden=(8,), dropout=0.5, classes=3)


def batches_of(size: int):
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 7, 10])
def test_metrics_do_not_depend_on_the_batches(model, size):
    logits = model.eval()(IMAGES).detach()
    expected = {
        "val/loss": pytest.approx(cross_entropy(logits, LABELS).item()),
        "val/accuracy": (logits.argmax(1) == LABELS).double().mean().item(),
    }
    assert evaluate(model, batches_of(size), CPU, FP32, "val") == expected
    predicted, labels = predict(model, batches_of(size), FP32)
    torch.testing.assert_close(predicted, logits)
    assert torch.equal(labels, LABELS)
    assert score_logits(predicted, labels, "val") == expected


@pytest.mark.parametrize("size", [1, 7, 10])
def test_with_mirror_images_the_softmax_is_the_mean_of_both(model, size):
    model.eval()
    mean = (model(IMAGES).softmax(1) + model(IMAGES.flip(-1)).softmax(1)).detach() / 2
    views = ImageViews(flip=True).make
    logits, labels = predict(model, batches_of(size), FP32, views)
    torch.testing.assert_close(logits.softmax(1), mean)
    assert evaluate(model, batches_of(size), CPU, FP32, "test", views) == {
        "test/loss": pytest.approx(nll_loss(mean.log(), LABELS).item()),
        "test/accuracy": (mean.argmax(1) == LABELS).double().mean().item(),
    }
    assert torch.equal(labels, LABELS)


def test_the_mean_of_probabilities_too_small_for_fp32_keeps_its_logarithm():
    first = torch.tensor([[0.0, -200.0]])
    second = torch.tensor([[0.0, -300.0]])
    expected = torch.tensor([[0.0, -200 - log(2)]])
    torch.testing.assert_close(log_mean_softmax([first, second]), expected)


@pytest.mark.parametrize("flip", [False, True])
def test_logits_are_fp32_under_autocast(model, flip):
    views = ImageViews(flip).make
    exact, _ = predict(model, batches_of(7), FP32, views)
    rough, _ = predict(model, batches_of(7), BF16, views)
    difference = (rough - exact).abs().max()
    assert rough.dtype == torch.float32
    assert difference > 0
    assert difference < 0.05


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(model, training):
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad_batches = [(IMAGES[:, :, :2], LABELS)]
    evaluate(model, batches_of(7), CPU, FP32, "val")
    predict(model, batches_of(7), FP32)
    with pytest.raises(RuntimeError, match="shape"):
        evaluate(model, bad_batches, CPU, FP32, "val")
    with pytest.raises(RuntimeError, match="shape"):
        predict(model, bad_batches, FP32)
    assert all(module.training == training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_frozen_batch_norm_stays_in_eval_mode(model):
    freeze(model, 1)
    train_mode(model)
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    evaluate(model, batches_of(7), CPU, FP32, "val")
    assert [module.training for module in model.modules()] == modes


FOUR_PROBS = torch.tensor(
    [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05]], dtype=torch.float64
)
FOUR_LABELS = torch.tensor([0, 1, 0, 1])


def test_classification_metrics():
    assert classification_metrics(FOUR_PROBS, FOUR_LABELS, "test") == {
        "test/accuracy": 0.5,
        "test/top5_accuracy": 1.0,
        "test/loss": pytest.approx(-(log(0.7) + log(0.3) + log(0.1) + log(0.9)) / 4),
        # Each image is in a bin of its own.
        "test/calibration_error": pytest.approx((0.3 + 0.5 + 0.6 + 0.1) / 4),
    }


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 0.75), (3, 1), (9, 1)])
def test_top_k_accuracy(k, share):
    assert top_k_accuracy(FOUR_PROBS, FOUR_LABELS, k) == share


def test_a_loss_stays_finite():
    metrics = classification_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "x")
    assert metrics["x/loss"] == pytest.approx(-log(MIN_PROB))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_by_hand(bins):
    draws = numpy.random.default_rng(0)
    probs = draws.dirichlet(numpy.full(4, 0.5), 500)
    labels = draws.integers(0, 4, 500)
    probs[:2] = [[1, 0, 0, 0], [0.25] * 4]
    confidence = probs.max(1)
    correct = probs.argmax(1) == labels
    expected = 0.0
    for index in range(bins):
        in_bin = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if in_bin.any():
            expected += in_bin.mean() * abs(correct[in_bin].mean() - confidence[in_bin].mean())
    error = calibration_error(torch.from_numpy(probs), torch.from_numpy(labels), bins)
    assert error == pytest.approx(expected)


def test_perfect_calibration():
    probs = torch.tensor([[0.75, 0.25]] * 4)
    assert calibration_error(probs, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-7)


def test_a_bin_of_confidence_holds_its_upper_edge():
    probs = torch.tensor([[0.5, 0.5], [0.4, 0.6]])  # in the second and third of four bins
    assert calibration_error(probs, torch.tensor([0, 0]), bins=4) == pytest.approx(0.55)


def add_batch(sums: MetricSums, loss: float, correct: list[bool]) -> None:
    """Adds images of class 0, each with or without the right prediction."""
    logits = torch.eye(2)[[0 if is_right else 1 for is_right in correct]]
    sums.add(torch.tensor(loss), logits, torch.zeros(len(correct), dtype=torch.int64))


def test_the_points_of_a_curve_are_means_since_the_last_point():
    sums = MetricSums(CPU)
    add_batch(sums, 6.0, [True, False, False])
    first = sums.read_since_last(torch.tensor(2.5))
    assert first == {"loss": 2.0, "accuracy": pytest.approx(1 / 3), "gradient_norm": 2.5}
    add_batch(sums, 2.0, [True, True])
    add_batch(sums, 4.0, [False])
    second = sums.read_since_last(torch.tensor(0.5))
    assert second == {"loss": 2.0, "accuracy": pytest.approx(2 / 3), "gradient_norm": 0.5}
    assert sums.read("train") == {"train/loss": 2.0, "train/accuracy": 0.5}


def test_the_first_point_of_an_epoch_starts_with_the_epoch():
    sums = MetricSums(CPU)
    add_batch(sums, 6.0, [True])
    sums.read_since_last(torch.tensor(1.0))
    sums.reset()
    add_batch(sums, 1.0, [True])
    assert sums.read_since_last(torch.tensor(1.0))["loss"] == 1.0


def test_a_point_after_a_resume_is_that_of_the_uninterrupted_run():
    sums = MetricSums(CPU)
    add_batch(sums, 6.0, [True])
    sums.read_since_last(torch.tensor(1.0))
    add_batch(sums, 3.0, [False])
    resumed = MetricSums(CPU)
    resumed.load_state_dict(sums.state_dict())
    assert resumed.read_since_last(torch.tensor(1.0))["loss"] == 3.0


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (11, 2), (422, 43), (500, 50)])
def test_the_first_five_epochs_have_about_fifty_points(steps, interval):
    assert point_interval(steps) == interval


@pytest.mark.parametrize(("rank", "images"), [(0, 8), (1, 0)])
def test_only_rank_zero_takes_over_the_sums_of_a_checkpoint(rank, images, monkeypatch):
    """They are those of all ranks."""
    saved = {"sums": torch.tensor([4.0, 6.0]), "count": 8}
    state = collectives.ProcessGroupState(RankInfo(rank, 2))
    monkeypatch.setattr(collectives, "_STATE", state)
    sums = MetricSums(CPU)
    sums.load_state_dict(saved)
    assert sums.count == images
    assert bool(sums.sums.any()) == (rank == 0)
