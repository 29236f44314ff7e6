"""Scores of a network on images it was not trained on; each image counts once, whatever the batches."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggexp.distributed import collectives

CALIBRATION_BINS = 15  # bins of confidence, as in Guo et al. 2017
MIN_PROB = torch.finfo(
    torch.float32
).tiny  # a smaller probability counts as this in the loss, which stays finite


class MetricSums:
    """Adds up loss and correct answers of batches of any size; each rank of several those of its own images."""

    def __init__(self, device: torch.device):
        kind = (
            torch.float32 if device.type == "mps" else torch.float64
        )  # Apple's GPUs have no 64-bit numbers
        self.sums = torch.zeros(2, dtype=kind, device=device)
        self.count = 0

    def reset(self) -> None:
        self.sums = torch.zeros_like(self.sums)
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"].to(self.sums)
        self.count = state["count"]
        if collectives.rank():
            self.reset()

    def pool(self) -> None:
        """Rank 0 takes over what all have added. Numbers of fp32 add up exactly in fp64, in whatever order."""
        *_, count = totals = self._totals()
        self.sums = totals[:2]
        self.count = int(count)
        if collectives.rank():
            self.reset()

    def _totals(self) -> Tensor:
        return collectives.all_reduce_sum(
            torch.cat((self.sums, self.sums.new_tensor([self.count])))
        )

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: summed over the batch. logits: [N, K]. labels: [N]."""
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack((loss.detach(), correct)).to(self.sums.dtype)
        self.count += len(labels)

    def read(self, split: str) -> dict[str, float]:
        """`split`/loss and `split`/accuracy, the means over all images. Waits for the device and for all ranks."""
        totals = self._totals()
        loss, correct = (totals[:2] / totals[2].clamp(min=1)).tolist()
        return {f"{split}/loss": loss, f"{split}/accuracy": correct}


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """[classes, classes] counts, row = true class, column = predicted class."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(
        classes, classes
    )


def classification_metrics(scores: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """What probabilities [N, K] are worth, by the names of metrics.jsonl; the loss is -log of the true class's."""
    true = scores.gather(1, labels[:, None])[:, 0]
    return {
        f"{split}/accuracy": (scores.argmax(1) == labels).double().mean().item(),
        f"{split}/top5_accuracy": top_k_accuracy(scores, labels, 5),
        f"{split}/loss": -true.clamp(min=MIN_PROB).log().mean().item(),
        f"{split}/calibration_error": calibration_error(scores, labels),
    }


def top_k_accuracy(scores: Tensor, labels: Tensor, count: int) -> float:
    """The share of images whose class is among the `count` of the highest scores; all where there are no more."""
    best = scores.topk(min(count, scores.shape[1]), 1).indices
    return (best == labels[:, None]).any(1).double().mean().item()


def calibration_error(scores: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """How far confidence is from accuracy, 0..1: the mean distance over equally wide bins, each by its images.

    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, equation 3.
    """
    confidence, predicted = scores.max(1)
    place = (confidence * bins).ceil().long().clamp(
        1, bins
    ) - 1  # of 15 bins the first is (0, 1/15]
    distance = (predicted == labels).double() - confidence.double()
    return torch.zeros(bins, dtype=torch.float64).index_add_(
        0, place, distance
    ).abs().sum().item() / len(labels)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    split: str,
) -> dict[str, float]:
    """`split`/loss (cross-entropy in nats) and `split`/accuracy (0..1). Leaves the net in the mode it was in."""
    sums = MetricSums(device)
    for labels, logits in _forward(model, batches, autocast):
        sums.add(functional.cross_entropy(logits, labels, reduction="sum"), logits, labels)
    return sums.read(split)


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: Callable[[], AbstractContextManager],
) -> tuple[Tensor, Tensor]:
    """logits [N, K] in fp32 and labels [N], both on the CPU, in the order of the batches; each rank gets all."""
    labels, logits = zip(
        *collectives.gather_interleaved(list(_forward(model, batches, autocast))), strict=True
    )
    return torch.cat(logits).cpu(), torch.cat(
        labels
    ).cpu()  # one wait for the device, not one a batch


def _forward(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: Callable[[], AbstractContextManager],
) -> Iterable[tuple[Tensor, Tensor]]:
    training = model.training
    model.eval()
    try:
        for images, labels in batches:
            with autocast():
                logits = model(images)
            yield labels, logits.float()
    finally:
        model.train(training)


def score_logits(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """The same two metrics from logits [N, K] that were kept."""
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    correct = (logits.argmax(1) == labels).sum()
    return {
        f"{split}/loss": loss.item() / len(labels),
        f"{split}/accuracy": correct.item() / len(labels),
    }
