"""A moving average of the weights, updated without waiting for the device."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """average = decay * average + (1 - decay) * weights after every step; the first step's weights start it.

    Batch norm's running mean and deviation are averaged too, its count of batches is copied. torch's AveragedModel
    does the same, but reads and sends a counter in every step, which makes the host wait for a GPU.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = deepcopy(model)
        self._average = get_ema_multi_avg_fn(decay)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        mine, its = ([*part.parameters(), *part.buffers()] for part in (self.module, model))
        pairs = list(zip(mine, its, strict=True))
        numbers = [pair for pair in pairs if self.updates and pair[0].is_floating_point()]
        if numbers:
            averages, values = zip(*numbers, strict=True)
            self._average(averages, values, self.updates)
        for average, value in pairs:
            if not self.updates or not average.is_floating_point():
                average.copy_(value)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
