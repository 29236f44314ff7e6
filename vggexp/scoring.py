"""Scores of a network on images it was not trained on; each image counts once, whatever the batches."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggexp import dist
from vggexp.metrics import Sums


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    split: str,
) -> dict[str, float]:
    """`split`/loss (cross-entropy in nats) and `split`/accuracy (0..1). Leaves the net in the mode it was in."""
    sums = Sums(device)
    for labels, logits in _forward(net, batches, autocast):
        sums.add(functional.cross_entropy(logits, labels, reduction="sum"), logits, labels)
    return sums.read(split)


@torch.inference_mode()
def predict(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: Callable[[], AbstractContextManager]
) -> tuple[Tensor, Tensor]:
    """logits [N, K] in fp32 and labels [N], both on the CPU, in the order of the batches; each rank gets all."""
    labels, logits = zip(*dist.woven(list(_forward(net, batches, autocast))), strict=True)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()  # one wait for the device, not one a batch


def _forward(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: Callable[[], AbstractContextManager]
) -> Iterable[tuple[Tensor, Tensor]]:
    training = net.training
    net.eval()
    try:
        for images, labels in batches:
            with autocast():
                logits = net(images)
            yield labels, logits.float()
    finally:
        net.train(training)


def score(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """The same two metrics from logits [N, K] that were kept."""
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    correct = (logits.argmax(1) == labels).sum()
    return {f"{split}/loss": loss.item() / len(labels), f"{split}/accuracy": correct.item() / len(labels)}
