"""Metrics of a model, in training and evaluation. Each image counts once, whatever the batches."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, log
from operator import sub
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggexp.data.image_views import ImageViews
from vggexp.distributed import collectives
from vggexp.models.transfer import train_mode
from vggexp.training.step import Autocast, Batch

CALIBRATION_BINS = 15  # bins of confidence, as in Guo et al. 2017
# A smaller probability counts as this one in the loss, so that the loss stays finite.
MIN_PROB = torch.finfo(torch.float32).tiny
CURVE_POINTS = 50  # of the curves inside the epochs, over CURVE_EPOCHS; each waits for the device
CURVE_EPOCHS = 5

# Makes the views of a batch of images: see vggexp.data.image_views.
MakeViews = Callable[[Tensor], Iterable[Tensor]]
IMAGE_ALONE: MakeViews = ImageViews().make


def point_interval(steps_per_epoch: int) -> int:
    """Returns the steps between two points that give the first CURVE_EPOCHS epochs CURVE_POINTS.

    The number of epochs does not count, because a run may continue with more epochs.
    """
    return ceil(CURVE_EPOCHS * steps_per_epoch / CURVE_POINTS)


class MetricSums:
    """Sums of loss and correct predictions over batches of any size.

    Each of several ranks sums over its own images.
    """

    def __init__(self, device: torch.device):
        # Apple's GPUs have no 64-bit floats.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=dtype, device=device)
        self.count = 0
        self.last_totals = [0.0, 0.0, 0.0]  # of all ranks, at the last `read_since_last`

    def reset(self) -> None:
        self.sums = torch.zeros_like(self.sums)
        self.count = 0
        self.last_totals = [0.0, 0.0, 0.0]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "count": self.count, "last_totals": self.last_totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"].to(self.sums)
        self.count = state["count"]
        self.last_totals = state.get("last_totals", [0.0, 0.0, 0.0])  # older checkpoints have none
        if collectives.rank():
            self.reset()

    def reduce_to_rank_zero(self) -> None:
        """Moves the sums of all ranks to rank 0. fp64 sums fp32 values exactly, in any order."""
        totals = self._totals()
        self.sums = totals[:2]
        self.count = int(totals[2])
        if collectives.rank():
            self.reset()

    def _totals(self) -> Tensor:
        """Returns loss, correct predictions and images of all ranks, [3]."""
        count = self.sums.new_full((1,), self.count)  # unlike new_tensor, waits for no copy
        return collectives.all_reduce_sum(torch.cat((self.sums, count)))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            loss: Sum over the images of the batch.
            logits: [N, K].
            labels: [N]. Or [N, K], the shares of the classes in mixed images: the share of the
                predicted class counts as correct.
        """
        predictions = logits.detach().argmax(1)
        if labels.ndim == 2:
            correct = labels.gather(1, predictions[:, None]).sum()
        else:
            correct = (predictions == labels).sum()
        added = torch.stack((loss.detach(), correct))
        self.sums += added.to(self.sums.dtype)
        self.count += len(labels)

    def mean_loss(self) -> float:
        """Returns the mean loss over the images of this rank. Waits for the device."""
        return self.sums[0].item() / max(self.count, 1)

    def read(self, split: str) -> dict[str, float]:
        """Returns `split`/loss and `split`/accuracy, the means over all images.

        Waits for the device and for all ranks.
        """
        totals = self._totals()
        count = totals[2].clamp(min=1)
        loss, correct = (totals[:2] / count).tolist()
        return {f"{split}/loss": loss, f"{split}/accuracy": correct}

    def read_since_last(self, gradient_norm: Tensor) -> dict[str, float]:
        """Returns loss, accuracy and gradient_norm.

        Loss and accuracy are the means over all images since the last call, or since the epoch
        began. Waits once for the device, and for all ranks.

        Args:
            gradient_norm: Scalar on the device; read in the same wait.
        """
        norm = gradient_norm.to(self.sums).reshape(1)
        *totals, norm_value = torch.cat((self._totals(), norm)).tolist()
        loss, correct, images = map(sub, totals, self.last_totals)
        self.last_totals = totals
        return {"loss": loss / images, "accuracy": correct / images, "gradient_norm": norm_value}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Autocast,
    split: str,
    views: MakeViews = IMAGE_ALONE,
) -> dict[str, float]:
    """Returns `split`/loss (cross-entropy in nats) and `split`/accuracy (0..1).

    Leaves the model in the mode in which it was.

    Args:
        views: makes the copies of a batch over whose softmax the mean is taken.
    """
    sums = MetricSums(device)
    for logits, labels in _forward(model, batches, autocast, views):
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        sums.add(loss, logits, labels)
    return sums.read(split)


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: Autocast,
    views: MakeViews = IMAGE_ALONE,
) -> tuple[Tensor, Tensor]:
    """Returns fp32 logits [N, K] and labels [N] on the CPU, in the order of the batches.

    Each rank gets the results of all ranks.

    Args:
        views: as in `evaluate`.
    """
    own_results = list(_forward(model, batches, autocast, views))
    results = collectives.gather_interleaved(own_results)
    logits = torch.cat([batch_logits for batch_logits, _ in results])
    labels = torch.cat([batch_labels for _, batch_labels in results])
    # One wait for the device instead of one per batch.
    return logits.cpu(), labels.cpu()


def _forward(
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: Autocast,
    views: MakeViews,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yields fp32 logits and labels of each batch, from the model in eval mode.

    The softmax of the logits is the mean over the views of an image.
    """
    training = model.training
    model.eval()
    try:
        for images, labels in batches:
            with autocast():
                logits = [model(view).float() for view in views(images)]
            yield log_mean_softmax(logits), labels
    finally:
        if training:
            train_mode(model)


def log_mean_softmax(view_logits: Sequence[Tensor]) -> Tensor:
    """Returns logits [N, K] whose softmax is the mean of the softmax of each view's logits [N, K].

    The logits of a single view stay as they are.
    """
    if len(view_logits) == 1:
        return view_logits[0]
    log_probs = torch.stack([logits.log_softmax(1) for logits in view_logits])
    return log_probs.logsumexp(0) - log(len(view_logits))


def score_logits(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """Returns the metrics of `evaluate` for stored logits [N, K]."""
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    correct = (logits.argmax(1) == labels).sum()
    return {
        f"{split}/loss": loss.item() / len(labels),
        f"{split}/accuracy": correct.item() / len(labels),
    }


def classification_metrics(probs: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """Returns the metrics of probabilities [N, K], under the names of metrics.jsonl.

    The loss is the mean of -log of the true class's probability.
    """
    correct = probs.argmax(1) == labels
    true_probs = probs.gather(1, labels[:, None])[:, 0]
    log_probs = true_probs.clamp(min=MIN_PROB).log()
    return {
        f"{split}/accuracy": correct.double().mean().item(),
        f"{split}/top5_accuracy": top_k_accuracy(probs, labels, 5),
        f"{split}/loss": -log_probs.mean().item(),
        f"{split}/calibration_error": calibration_error(probs, labels),
    }


def top_k_accuracy(probs: Tensor, labels: Tensor, k: int) -> float:
    """Returns the share of images whose class is among the `k` most probable classes."""
    k = min(k, probs.shape[1])
    best = probs.topk(k, 1).indices
    correct = (best == labels[:, None]).any(1)
    return correct.double().mean().item()


def calibration_error(probs: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Returns the mean distance between confidence and accuracy, 0..1.

    The mean is over bins of equal width, each with the weight of its images.

    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599,
    equation 3.
    """
    confidence, predictions = probs.max(1)
    # Bins are open below and closed above: the first of 15 bins is (0, 1/15].
    indices = (confidence * bins).ceil().long().clamp(1, bins) - 1
    correct = predictions == labels
    distance = correct.double() - confidence.double()
    sums = torch.zeros(bins, dtype=torch.float64)
    sums.index_add_(0, indices, distance)
    return sums.abs().sum().item() / len(labels)
