"""step.gradients for several ranks: each takes its part of a batch, and DDP adds up what they find."""

import contextlib
import warnings
from functools import reduce
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from vggexp.training.step import NonFiniteGuard, forward_backward


class DistributedStep:
    """Stands for `gradients` where there are several ranks; wraps the network at the first call, with rank 0's weights.

    The results are those of this rank's own images. All ranks take the same number of micro-batches, of which one may
    be empty, and only the last sends gradients.
    """

    def __init__(self) -> None:
        self.model: DistributedDataParallel | None = None

    def __call__(
        self,
        model: nn.Module,
        scaler: GradScaler,
        guard: NonFiniteGuard,
        images: Tensor,
        labels: Tensor,
        *,
        micro_batches: int,
        **given: Any,
    ) -> tuple[Tensor, Tensor]:
        self.model = self.model or wrapped(model)
        parts = zip(
            images.tensor_split(micro_batches), labels.tensor_split(micro_batches), strict=True
        )
        losses = []
        answers = []
        for number, (part, truth) in enumerate(parts, 1):
            with contextlib.nullcontext() if number == micro_batches else self.model.no_sync():
                loss, logits = forward_backward(
                    self.model, scaler, guard, part, truth, micro_batches=1, **given
                )
            losses.append(loss)
            answers.append(logits)
        return reduce(torch.add, losses), torch.cat(answers)


def wrapped(model: nn.Module) -> DistributedDataParallel:
    """The ranks keep their buffers, for which see dist.spread."""
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # the new name is not in every torch
        made = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    made.register_comm_hook(None, summed)
    return made


def summed(state: None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Each gradient by itself: DDP sorts its buckets anew after the first step of a process, and in another place of a
    bucket three ranks or more would be added up in another order, so that a continued run would be another one.
    """
    works = [distributed.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    done = torch.futures.collect_all([work.get_future() for work in works])
    return done.then(lambda _: bucket.buffer())
