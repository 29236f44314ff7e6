"""Loss and accuracy as sums over images: they stay on the device and are read once, when a line is due."""

from typing import Any

import torch
from torch import Tensor


class Sums:
    """Adds up loss and correct answers of batches of any size."""

    def __init__(self, device: torch.device):
        kind = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no 64-bit numbers
        self.sums = torch.zeros(2, dtype=kind, device=device)
        self.count = 0

    def reset(self) -> None:
        self.sums, self.count = torch.zeros_like(self.sums), 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.count = state["sums"].to(self.sums), state["count"]

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: summed over the batch. logits: [N, K]. labels: [N]."""
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack((loss.detach(), correct)).to(self.sums.dtype)
        self.count += len(labels)

    def read(self, split: str) -> dict[str, float]:
        """`split`/loss and `split`/accuracy, the means over all images. Waits for the device."""
        loss, correct = (self.sums / max(1, self.count)).tolist()
        return {f"{split}/loss": loss, f"{split}/accuracy": correct}


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """[classes, classes] counts, row = true class, column = predicted class."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
