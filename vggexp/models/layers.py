"""Batch norm that is exact and over all ranks, and a max-pooling that does not keep its input."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.distributed import collectives

# Values of a channel up to which torch's own statistics are taken: their variance is off by 2e-4.
MAX_TORCH_VALUES = 1 << 15
ROW_LENGTH = 2048  # sums side by side: short enough for the cache, long enough for vectors
CHUNK_ROWS = 512  # values in each sum: the variance is off by 4e-7


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with exact statistics, over the whole batch instead of a rank's part.

    `synchronize` switches to the whole batch. torch's SyncBatchNorm does not run on a CPU. A frozen
    layer or a fused block would also not recognize SyncBatchNorm as a batch norm.
    """

    synchronized = False

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes [N, C, H, W]; N may be 0 on a rank."""
        if not self.training:
            return super().forward(images)
        if self.synchronized:
            return self._normalize_over_ranks(images)
        if _torch_loses_digits(images) and self.weight.dtype == torch.float32:
            return self._normalize_exactly(images)
        return super().forward(images)

    def _normalize_exactly(self, images: Tensor) -> Tensor:
        count = images.numel() / images.shape[1]
        mean, variance = channel_statistics(images.detach())
        self._update_running_stats(mean, variance * (count / (count - 1)))
        return _Normalize.apply(images, mean, variance, self.weight, self.bias, self.eps)

    def _normalize_over_ranks(self, images: Tensor) -> Tensor:
        pixel_count = images.numel() / images.shape[1]
        # Unlike new_tensor, new_full waits for no copy to the device.
        pixels = images.new_full((1,), pixel_count, dtype=torch.float32)
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


def _torch_loses_digits(images: Tensor) -> bool:
    """Returns whether torch adds all values of a channel one by one in fp32.

    It does so on a CPU in the channels_last format. With 2.4 million values the variance was off by
    1 %, and the gradients of a network by 6 times as much as in the contiguous format (torch 2.14).
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if images.numel() <= MAX_TORCH_VALUES * images.shape[1]:
        return False
    return _is_channels_last(images)


def _is_channels_last(images: Tensor) -> bool:
    """Returns whether the images are in this format and not in the contiguous format too."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance [C], fp32, of images in the channels_last format on a CPU.

    Several pixels form a row. torch's kernel sums each column of a few rows at a time, which stay
    in the cache for its second pass. All sums have the same number of terms.
    """
    channels = images.shape[1]
    values = images.numel() // channels
    group = smallest_divisor(values, ROW_LENGTH // channels)
    row_count = values // group
    parts = smallest_divisor(row_count, math.ceil(row_count / CHUNK_ROWS))
    chunks = images.permute(0, 2, 3, 1).reshape(parts, -1, group * channels)
    unused = torch.zeros(group * channels)  # running mean and variance, with a momentum of 0
    results = [torch.batch_norm_update_stats(chunk, unused, unused, 0.0) for chunk in chunks]
    means = torch.cat([mean for mean, _ in results]).view(-1, channels)
    variances = torch.cat([variance for _, variance in results]).view(-1, channels)
    variance_of_means, mean = torch.var_mean(means, 0, correction=0)
    return mean, variances.mean(0) + variance_of_means


@cache
def smallest_divisor(number: int, least: int) -> int:
    """Returns the smallest divisor of a positive number that is at least `least`."""
    divisor = max(1, min(least, number))
    while number % divisor:
        divisor += 1
    return divisor


class _Normalize(torch.autograd.Function):
    """Batch norm in training with the statistics [C] that are given, by torch's operators."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(images, mean, (variance + eps).rsqrt(), weight)
        ctx.eps = eps
        arguments = (weight, bias, mean, variance, False, 0.0, eps)  # not training, no momentum
        return torch.native_batch_norm(images, *arguments)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, mean, inverse_std, weight = ctx.saved_tensors
        needed = [ctx.needs_input_grad[index] for index in (0, 3, 4)]
        statistics = (weight, None, None, mean, inverse_std, True, ctx.eps, needed)
        gradients = torch.ops.aten.native_batch_norm_backward(gradient, images, *statistics)
        image_gradient, weight_gradient, bias_gradient = gradients
        return image_gradient, None, None, weight_gradient, bias_gradient, None


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
        ctx.memory_format = torch.contiguous_format
        if _is_channels_last(images):
            ctx.memory_format = torch.channels_last
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
