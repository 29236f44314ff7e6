"""A moving average of the weights, updated without a wait for the device."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """average = decay * average + (1 - decay) * weights after every step.

    The weights after the first step start the average. Batch norm's running mean and variance are
    averaged too. Batch norm's count of batches is copied. torch's AveragedModel does the same, but
    reads and sends a counter in every step, and the host then waits for a GPU.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = deepcopy(model)
        self.updates = 0
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        averages = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        averaged: list[Tensor] = []
        added: list[Tensor] = []
        for average, value in zip(averages, values, strict=True):
            if self.updates and average.is_floating_point():
                averaged.append(average)
                added.append(value)
            else:
                average.copy_(value)
        if averaged:
            self._average(averaged, added, self.updates)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
