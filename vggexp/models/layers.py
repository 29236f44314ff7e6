"""Max-pooling that keeps where its maxima were, and not the map it chose them from."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.distributed import collectives


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
        *_, count = sums = _SumOverRanks.apply(torch.cat((images.float().sum((0, 2, 3)), pixels)))
        mean = sums[:-1] / count
        centred = images.float() - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        )
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.on = True


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks; each of them needs the gradient of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return collectives.all_reduce_sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return collectives.all_reduce_sum(gradient.contiguous())


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d, bit for bit. torch's own also keeps its input for the backward pass, which only asks for its shape.

    Nothing else needs that input where the ReLU stands behind the pooling, and in a VGG it is a block's largest tensor.
    """

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W]; an unbatched map is not taken."""
        # Metal's backward pass reads its input, and a compiler decides itself what is kept.
        if not images.requires_grad or images.device.type == "mps" or torch.compiler.is_compiling():
            return super().forward(images)
        return _Pool.apply(images, self.kernel_size, self.stride)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: int, stride: int) -> Tensor:
        maxima, places = torch.ops.aten.max_pool2d_with_indices(images, [kernel] * 2, [stride] * 2)
        ctx.save_for_backward(places)
        ctx.window = ([kernel] * 2, [stride] * 2, [0, 0], [1, 1], False)
        ctx.like = _form(images)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        shape, memory_format = ctx.like
        before = torch.empty(
            shape, dtype=gradient.dtype, device=gradient.device, memory_format=memory_format
        )
        # The input is asked for its shape and layout alone, which the place for the result has too.
        operator = torch.ops.aten.max_pool2d_with_indices_backward.grad_input
        operator(gradient, before, *ctx.window, *ctx.saved_tensors, grad_input=before)
        return before, None, None


def _form(images: Tensor) -> tuple[torch.Size, torch.memory_format]:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return images.shape, torch.channels_last if last else torch.contiguous_format
