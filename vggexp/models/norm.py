"""Batch norm over the images of all ranks, on every device."""

from typing import Any

import torch
from torch import Tensor, nn

from vggexp import dist


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d; once `synchronize` was called, in training, over the whole batch and not over a rank's part.

    torch's own SyncBatchNorm takes no images on a CPU, and a frozen layer or a fused block would not know it as a batch
    norm.
    """

    on = False

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W]; N may be 0 on a rank."""
        if not (self.on and self.training):
            return super().forward(images)
        pixels = images.new_tensor([images.numel() / images.shape[1]], dtype=torch.float32)
        *_, count = sums = _Total.apply(torch.cat((images.float().sum((0, 2, 3)), pixels)))
        mean = sums[:-1] / count
        centred = images.float() - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronize(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.on = True


class _Total(torch.autograd.Function):
    """The sum over the ranks; each of them needs the gradient of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return dist.total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return dist.total(gradient.contiguous())
