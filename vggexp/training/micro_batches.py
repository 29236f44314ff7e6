"""Splits a batch into more micro-batches when the memory runs out."""

import torch
from torch import nn

from vggexp.distributed import collectives
from vggexp.errors import ResourceError


def double_micro_batches(model: nn.Module, micro_batches: int, batch_size: int) -> int:
    """Returns twice the number of micro-batches, which gives the same sum of gradients.

    Raises:
        ResourceError: The sum would not be the same, or a micro-batch is already one image.
    """
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        reason = (
            "to split the batch further would change what batch norm computes, "
            "so it is yours to choose: "
        )
        raise ResourceError(oom_message(micro_batches, batch_size, reason))
    if micro_batches >= batch_size:
        raise ResourceError(
            "out of memory with a single image; choose a smaller network or data.resize"
        )
    torch.cuda.empty_cache()  # does nothing without a GPU
    return min(2 * micro_batches, batch_size)


def oom_message(micro_batches: int, batch_size: int, reason: str = "choose ") -> str:
    advice = "a smaller data.batch_size"
    largest = batch_size // collectives.world_size()  # a micro-batch of one image on each rank
    if micro_batches < largest:
        advice = f"train.accumulate={min(2 * micro_batches, largest)}, or {advice}"
    return (
        f"out of memory with data.batch_size={batch_size} and "
        f"train.accumulate={micro_batches}; {reason}{advice}"
    )
