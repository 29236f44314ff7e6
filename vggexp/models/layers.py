"""Batch norm over all ranks, and a max-pooling that keeps indices but not its input."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.distributed import collectives


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that can normalize over the whole batch instead of a rank's part, in training.

    `synchronize` switches this on. torch's SyncBatchNorm does not run on a CPU. A frozen layer or a
    fused block would also not recognize SyncBatchNorm as a batch norm.
    """

    synchronized = False

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes [N, C, H, W]; N may be 0 on a rank."""
        if not (self.synchronized and self.training):
            return super().forward(images)
        pixel_count = images.numel() / images.shape[1]
        pixels = images.new_tensor([pixel_count], dtype=torch.float32)
        channel_sums = images.float().sum((0, 2, 3))
        totals = _SumOverRanks.apply(torch.cat((channel_sums, pixels)))
        count = totals[-1]
        mean = totals[:-1] / count
        centered = images.float() - mean[:, None, None]
        squares = centered.square().sum((0, 2, 3))
        variance = _SumOverRanks.apply(squares) / count
        unbiased_variance = variance.detach() * count / (count - 1)
        self._update_running_stats(mean.detach(), unbiased_variance)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalized = centered * scale[:, None, None]
        normalized = normalized + self.bias[:, None, None]
        return normalized.to(images.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronize(model: nn.Module) -> None:
    """Lets every batch norm of the model normalize over the images of all ranks."""
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.synchronized = True


class _SumOverRanks(torch.autograd.Function):
    """Sums over the ranks. Every rank needs the gradient of all ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return collectives.all_reduce_sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return collectives.all_reduce_sum(gradient.contiguous())


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d with the same bits and less memory.

    torch's pooling also keeps its input for the backward pass, which only reads the input's shape.
    Nothing else needs that input if the ReLU stands behind the pooling. In a VGG the input is a
    block's largest tensor.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pools [N, C, H, W]; a map without a batch dimension is not accepted."""
        if not images.requires_grad:
            return super().forward(images)
        # Metal's backward pass reads its input, and a compiler decides itself what to keep.
        if images.device.type == "mps" or torch.compiler.is_compiling():
            return super().forward(images)
        return _Pool.apply(images, self.kernel_size, self.stride)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: int, stride: int) -> Tensor:
        window = [kernel, kernel]
        strides = [stride, stride]
        maxima, indices = torch.ops.aten.max_pool2d_with_indices(images, window, strides)
        ctx.save_for_backward(indices)
        ctx.arguments = (window, strides, [0, 0], [1, 1], False)  # padding, dilation, ceil_mode
        ctx.shape = images.shape
        ctx.memory_format = _memory_format(images)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        input_gradient = torch.empty(
            ctx.shape,
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=ctx.memory_format,
        )
        (indices,) = ctx.saved_tensors
        # The operator reads only shape and layout of its input. The tensor for the result has both.
        operator = torch.ops.aten.max_pool2d_with_indices_backward.grad_input
        operator(gradient, input_gradient, *ctx.arguments, indices, grad_input=input_gradient)
        return input_gradient, None, None


def _memory_format(images: Tensor) -> torch.memory_format:
    if images.is_contiguous():
        return torch.contiguous_format
    if images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
