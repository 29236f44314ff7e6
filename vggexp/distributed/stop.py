"""Stops all ranks at the same step."""

from math import ceil
from signal import Signals
from typing import Any

import torch
from torch import Tensor, distributed

from vggexp.distributed.collectives import all_reduce_max
from vggexp.system.signals import StopFlag

SYNC_EVERY_STEPS = 2  # steps from one exchange of the ranks to the next


class DistributedStop(StopFlag):
    """A stop flag of all ranks, whichever rank a signal reaches.

    Every few steps each rank sends its flag to the others, and reads the flags that were sent a
    few steps ago. No rank can be a step ahead of another, so these flags have arrived by then and
    no rank waits.

    Args:
        local: the flag of this process.
    """

    def __init__(self, local: StopFlag):
        super().__init__()
        self.local = local
        self.resume_hint = local.resume_hint
        self.steps = 0
        # The exchange under way: its handle, and the values that it reduces.
        self._pending: tuple[Any, Tensor] = (None, torch.zeros(2, dtype=torch.int64))

    def step(self, is_due: bool) -> bool:
        """Returns whether any rank has a due checkpoint or a signal. Call on every rank each step.

        Args:
            is_due: whether a checkpoint is due on this rank.
        """
        self.steps += 1
        if self.steps % SYNC_EVERY_STEPS:
            return False
        handle, values = self._pending
        if handle is not None:
            handle.wait()
        signum, any_due = values.tolist()
        self._update(signum)
        # If this step saves, the checkpoint that is due on this rank is no longer due.
        values = torch.tensor([int(self.local.signal or 0), int(is_due and not any_due)])
        handle = distributed.all_reduce(values, distributed.ReduceOp.MAX, async_op=True)
        self._pending = (handle, values)
        return bool(signum or any_due)

    def rest(self, seconds: float) -> None:
        """Sleeps, one second at a time on all ranks together. Even 0 seconds exchange the flags."""
        for _ in range(ceil(seconds)):
            self.local.rest(1)
            self._exchange()
            if self.signal is not None:
                return
        self._exchange()

    def _exchange(self) -> None:
        self._update(all_reduce_max(int(self.local.signal or 0)))

    def _update(self, signum: int) -> None:
        if self.signal is None and signum:
            self.signal = Signals(signum)
