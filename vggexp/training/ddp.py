"""The step of several ranks: each rank takes a part of the batch, and DDP sums the gradients."""

import contextlib
import warnings
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vggexp.distributed import collectives
from vggexp.training.step import Batch, StepSettings, forward_backward


class DistributedStep:
    """Replaces `forward_backward` if there are several ranks.

    The first call wraps the model in DDP, with rank 0's weights and buffers. The results
    are those of this rank's own images. All ranks take the same number of micro-batches, and a
    micro-batch may be empty. Only the last micro-batch sends gradients.
    """

    def __init__(self) -> None:
        self.model: DistributedDataParallel | None = None

    def __call__(
        self, model: nn.Module, batch: Batch, settings: StepSettings
    ) -> tuple[Tensor, Tensor]:
        if self.model is None:
            self.model = wrap_in_ddp(model)
        images, labels = batch
        count = settings.micro_batches
        micro_batches = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        settings = replace(settings, micro_batches=1)
        losses = []
        logits = []
        for number, micro_batch in enumerate(micro_batches, 1):
            is_last = number == count
            with contextlib.nullcontext() if is_last else self.model.no_sync():
                loss, outputs = forward_backward(self.model, micro_batch, settings)
            losses.append(loss)
            logits.append(outputs)
        return reduce(torch.add, losses), torch.cat(logits)


def wrap_in_ddp(model: nn.Module) -> DistributedDataParallel:
    """Wraps the model, whose weights and buffers become those of rank 0.

    Later each rank keeps its own buffers until `collectives.broadcast_` is called.
    """
    collectives.broadcast_(model.buffers())  # without its own broadcast, DDP copies only weights
    # torch warns that an argument is renamed, but not every supported torch has the new name.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        ddp = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, all_reduce_each_gradient)
    return ddp


def all_reduce_each_gradient(
    state: None, bucket: distributed.GradBucket
) -> torch.futures.Future[Tensor]:
    """Sums each gradient of a bucket over the ranks, by an all-reduce of its own.

    DDP sorts its buckets again after the first step of a process. A gradient then has another
    offset in its bucket, and the sum over three ranks or more would run in another order. A resumed
    run would then differ from an uninterrupted one.
    """
    works = [distributed.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    done = torch.futures.collect_all([work.get_future() for work in works])
    return done.then(lambda _: bucket.buffer())
