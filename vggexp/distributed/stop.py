from math import ceil
from signal import Signals
from typing import Any

import torch
from torch import Tensor, distributed

from vggexp.distributed.collectives import all_reduce_max
from vggexp.system.signals import StopFlag

SYNC_EVERY_STEPS = 2  # steps from one question of `SharedStop` to the next


class DistributedStop(StopFlag):
    """A stop of all ranks at the same step, whichever of them a signal has reached.

    Every few steps each tells the others what it has heard, and reads what they told a few steps ago: by then it has
    come, since no rank can be a step ahead of another, and nobody waits.
    """

    def __init__(self, own: StopFlag):
        super().__init__()
        self.own = own
        self.resume_hint = own.resume_hint
        self.steps = 0
        self._pending: tuple[Any, Tensor] = (None, torch.zeros(2, dtype=torch.int64))

    def step(self, due: bool) -> bool:
        """After each step, on every rank: whether one of them has found a checkpoint due, or a stop."""
        self.steps += 1
        if self.steps % SYNC_EVERY_STEPS:
            return False
        work, answer = self._pending
        if work is not None:
            work.wait()
        number, wanted = answer.tolist()
        self._update(number)
        question = torch.tensor([int(self.own.signal or 0), int(due)])
        self._pending = (
            distributed.all_reduce(question, distributed.ReduceOp.MAX, async_op=True),
            question,
        )
        return bool(number or wanted)

    def rest(self, seconds: float) -> None:
        """In which the ranks stay together. Without a rest they still meet once."""
        for _ in range(ceil(seconds)):
            self.own.rest(1)
            self._update(all_reduce_max(int(self.own.signal or 0)))
            if self.signal is not None:
                return
        self._update(all_reduce_max(int(self.own.signal or 0)))

    def _update(self, number: int) -> None:
        self.signal = self.signal or (Signals(number) if number else None)
