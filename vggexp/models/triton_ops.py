"""A convolution with its bias, pooling and ReLU in one pass over a GPU's memory.

cuDNN's products run near the hardware's rate, but the operators between the products do not. As
separate operators, bias, pooling (whose indices torch keeps in 64 bits) and ReLU read and write the
activations so often that they take as long as the products. Here one kernel reads the output of a
convolution and writes the input of the next one. For each output the kernel also writes a one-byte
code: the index of the maximum in its window, or INACTIVE if the ReLU made the output zero. The
first convolution multiplies little for the amount that it would write, so it is part of the kernel.
Activations are [N, C, H, W] in channels_last.

An import of this module imports Triton, which comes with torch for CUDA.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from triton import language as tl

MAX_FIRST_CHANNELS = 3  # image channels up to which the kernel computes the first convolution
INACTIVE = tl.constexpr(127)  # code of an output that the ReLU made zero
CHANNELS = 64  # of a program's tile
# Pixels of a program's tile in each kernel, the fastest of 16 to 128 on an H200.
BIAS_POOL_RELU_FORWARD = 16
BIAS_POOL_RELU_BACKWARD = 64
FIRST_FORWARD = 64
FIRST_BACKWARD = 16
MAX_PROGRAMS = 1024  # programs that share a sum over all pixels


def convolution(images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """Returns relu(max_pool(conv2d(images, weight) + bias)).

    [N, C, H, W] -> [N, K, H // pool, W // pool]. Multiplies in autocast's format if autocast is on.

    Args:
        weight: 3x3 or 1x1; the convolution keeps the size.
        pool: Height and width of the pooling windows; 1 means no pooling.
    """
    kernel = weight.shape[2]
    if images.shape[1] <= MAX_FIRST_CHANNELS and kernel == 3 and not images.requires_grad:
        return _FirstConvolution.apply(images, weight, bias, pool)
    maps = functional.conv2d(images, weight, padding=kernel // 2)
    return bias_pool_relu(maps, bias, pool)


def bias_pool_relu(images: Tensor, bias: Tensor | None, pool: int) -> Tensor:
    """Returns relu(max_pool(images + bias)), [N, C, H, W] -> [N, C, H // pool, W // pool]."""
    if bias is None:
        bias = images.new_zeros(images.shape[1])
    images = images.contiguous(memory_format=torch.channels_last)
    return _BiasPoolRelu.apply(images, bias, pool)


class _BiasPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, bias: Tensor, pool: int) -> Tensor:
        count, channels, height, width = images.shape
        out = _empty(images, (count, channels, height // pool, width // pool))
        codes = torch.empty_like(out, dtype=torch.int8)
        pixels = out.numel() // channels
        _bias_pool_relu_forward[_grid(pixels, BIAS_POOL_RELU_FORWARD, channels)](
            images,
            bias,
            out,
            codes,
            height,
            width,
            channels,
            pixels,
            pool,
            BIAS_POOL_RELU_FORWARD,
            CHANNELS,
        )
        ctx.save_for_backward(codes)
        ctx.pool = pool
        ctx.shape = images.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (codes,) = ctx.saved_tensors
        _, channels, height, width = ctx.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        input_gradient = _empty(gradient, ctx.shape)
        pixels = codes.numel() // channels
        if height % ctx.pool or width % ctx.pool:
            input_gradient.zero_()  # the last row or column is in no window
        grid = _grid(pixels, BIAS_POOL_RELU_BACKWARD, channels, MAX_PROGRAMS)
        sums = torch.empty(grid[0], channels, device=gradient.device)
        _bias_pool_relu_backward[grid](
            gradient,
            codes,
            input_gradient,
            sums,
            height,
            width,
            channels,
            pixels,
            ctx.pool,
            BIAS_POOL_RELU_BACKWARD,
            CHANNELS,
        )
        return input_gradient, sums.sum(0), None


class _FirstConvolution(torch.autograd.Function):
    """A 3x3 convolution with its bias, pooling and ReLU. The images get no gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
        dtype = images.dtype
        if torch.is_autocast_enabled(images.device.type):
            dtype = torch.get_autocast_dtype(images.device.type)
        count, depth, height, width = images.shape
        channels = len(weight)
        inner = max(16, triton.next_power_of_2(9 * depth + 1))
        # The last column is the bias, which `_patches` multiplies by one.
        matrix = torch.cat([weight.reshape(channels, -1), bias[:, None]], 1)
        matrix = functional.pad(matrix, (0, inner - matrix.shape[1])).T.to(dtype).contiguous()
        out = _empty(matrix, (count, channels, height // pool, width // pool))
        codes = torch.empty_like(out, dtype=torch.int8)
        pixels = out.numel() // channels
        _first_forward[_grid(pixels, FIRST_FORWARD, channels)](
            images,
            *images.stride(),
            matrix,
            out,
            codes,
            height,
            width,
            channels,
            pixels,
            depth,
            pool,
            inner,
            FIRST_FORWARD,
            CHANNELS,
        )
        ctx.save_for_backward(images, codes)
        ctx.pool = pool
        ctx.inner = inner
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        images, codes = ctx.saved_tensors
        _, depth, height, width = images.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        channels = gradient.shape[1]
        pixels = codes.numel() // gradient.shape[1]
        grid = _grid(pixels, FIRST_BACKWARD, channels, MAX_PROGRAMS)
        sums = torch.empty(grid[0], ctx.inner, channels, device=gradient.device)
        _first_backward[grid](
            images,
            *images.stride(),
            gradient,
            codes,
            sums,
            height,
            width,
            channels,
            pixels,
            depth,
            ctx.pool,
            ctx.inner,
            FIRST_BACKWARD,
            CHANNELS,
        )
        total = sums.sum(0)
        return None, total[: 9 * depth].T.reshape(channels, depth, 3, 3), total[9 * depth], None


def _grid(
    pixels: int, tile_pixels: int, channels: int, max_programs: int | None = None
) -> tuple[int, int]:
    """Returns the number of programs over the pixels of the output and over the channels."""
    programs = triton.cdiv(pixels, tile_pixels)
    if max_programs is not None:
        programs = min(max_programs, programs)
    return programs, triton.cdiv(channels, CHANNELS)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@triton.jit
def _tile(pixel, pixels, channels, CHANNELS: tl.constexpr):
    """Returns the program's channels, the offsets of its outputs, and which outputs exist."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & (channel < channels)[None]
    return channel, pixel.to(tl.int64)[:, None] * channels + channel[None], mask


@triton.jit
def _corner(pixel, height, width, POOL: tl.constexpr):
    """Returns image, row and column of the corner of each output pixel's window."""
    rows = height // POOL
    columns = width // POOL
    return pixel // (rows * columns), pixel // columns % rows * POOL, pixel % columns * POOL


@triton.jit
def _window(pixel, channel, height, width, channels, POOL: tl.constexpr):
    """Returns the offset of the first element in each window."""
    image, row, column = _corner(pixel, height, width, POOL)
    first_pixel = ((image * height + row) * width + column).to(tl.int64)
    return first_pixel[:, None] * channels + channel[None]


@triton.jit
def _larger(value, best, best_index, index: tl.constexpr):
    """Returns the larger values and their indices. As in torch, the first maximum wins."""
    is_larger = (value > best) | (value != value)  # NaN stays, as in torch
    best_index = tl.where(is_larger, index, best_index).to(tl.int8)
    return tl.where(is_larger, value, best), best_index


@triton.jit
def _store(out, codes, offset, value, best_index, mask):
    """Writes the ReLU of the values, and their codes."""
    inactive = value <= 0
    result = tl.where(inactive, 0, value).to(out.dtype.element_ty)
    code = tl.where(inactive, INACTIVE, best_index).to(tl.int8)
    tl.store(out + offset, result, mask=mask)
    tl.store(codes + offset, code, mask=mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _bias_pool_relu_forward(
    images,
    bias,
    out,
    codes,
    height,
    width,
    channels,
    pixels,
    POOL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel, offset, mask = _tile(pixel, pixels, channels, CHANNELS)
    window = images + _window(pixel, channel, height, width, channels, POOL)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), tl.float32)
    best_index = tl.zeros([PIXELS, CHANNELS], tl.int8)
    for index in tl.static_range(POOL * POOL):
        distance = (index // POOL * width + index % POOL) * channels
        value = tl.load(window + distance, mask=mask, other=0).to(tl.float32)
        best, best_index = _larger(value, best, best_index, index)
    shift = tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    _store(out, codes, offset, best + shift[None], best_index, mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _bias_pool_relu_backward(
    gradient,
    codes,
    input_gradient,
    sums,
    height,
    width,
    channels,
    pixels,
    POOL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes the gradient to the position of each maximum.

    sums: [programs, channels], each program's part of the gradient of the bias.
    """
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    for start in range(tl.program_id(0) * PIXELS, pixels, tl.num_programs(0) * PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        channel, offset, mask = _tile(pixel, pixels, channels, CHANNELS)
        code = tl.load(codes + offset, mask=mask, other=INACTIVE)
        value = tl.load(gradient + offset, mask=mask, other=0)
        window = input_gradient + _window(pixel, channel, height, width, channels, POOL)
        for index in tl.static_range(POOL * POOL):
            distance = (index // POOL * width + index % POOL) * channels
            tl.store(window + distance, tl.where(code == index, value, 0), mask=mask)
        total += tl.where(code == INACTIVE, 0, value.to(tl.float32))
    address = sums + tl.program_id(0) * channels + channel
    tl.store(address, tl.sum(total, 0), mask=channel < channels)


@triton.jit
def _patches(
    images,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    pixel,
    pixels,
    index: tl.constexpr,
    inner,
    height,
    width,
    DEPTH: tl.constexpr,
    POOL: tl.constexpr,
):
    """Returns [pixels, inner]: the 3x3 around element `index` of each window, by channel.

    A one for the bias follows the channels, then zeros.
    """
    image, row, column = _corner(pixel, height, width, POOL)
    y = (row + index // POOL)[:, None] + inner[None] % 9 // 3 - 1
    x = (column + index % POOL)[:, None] + inner[None] % 3 - 1
    exists = (pixel < pixels)[:, None] & (inner < 9 * DEPTH)[None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    address = images + image.to(tl.int64)[:, None] * image_stride
    address += inner[None] // 9 * channel_stride + y * row_stride + x * column_stride
    values = tl.load(address, mask=exists & inside, other=0).to(tl.float32)
    return tl.where((inner == 9 * DEPTH)[None], 1.0, values)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _first_forward(
    images,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    matrix,
    out,
    codes,
    height,
    width,
    channels,
    pixels,
    DEPTH: tl.constexpr,
    POOL: tl.constexpr,
    INNER: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inner = tl.arange(0, INNER)
    channel, offset, mask = _tile(pixel, pixels, channels, CHANNELS)
    address = matrix + inner[:, None] * channels + channel[None]
    weights = tl.load(address, mask=(channel < channels)[None], other=0)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), tl.float32)
    best_index = tl.zeros([PIXELS, CHANNELS], tl.int8)
    for index in tl.static_range(POOL * POOL):
        patches = _patches(
            images,
            image_stride,
            channel_stride,
            row_stride,
            column_stride,
            pixel,
            pixels,
            index,
            inner,
            height,
            width,
            DEPTH,
            POOL,
        )
        product = tl.dot(patches.to(weights.dtype), weights, input_precision="ieee")
        best, best_index = _larger(product, best, best_index, index)
    _store(out, codes, offset, best, best_index, mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _first_backward(
    images,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    gradient,
    codes,
    sums,
    height,
    width,
    channels,
    pixels,
    DEPTH: tl.constexpr,
    POOL: tl.constexpr,
    INNER: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums the gradient of weights and bias over each program's pixels.

    sums: [programs, INNER, channels], each program's part.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inner = tl.arange(0, INNER)
    total = tl.zeros([INNER, CHANNELS], tl.float32)
    for start in range(tl.program_id(0) * PIXELS, pixels, tl.num_programs(0) * PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        channel, offset, mask = _tile(pixel, pixels, channels, CHANNELS)
        code = tl.load(codes + offset, mask=mask, other=INACTIVE)
        value = tl.load(gradient + offset, mask=mask, other=0)
        for index in tl.static_range(POOL * POOL):
            patches = _patches(
                images,
                image_stride,
                channel_stride,
                row_stride,
                column_stride,
                pixel,
                pixels,
                index,
                inner,
                height,
                width,
                DEPTH,
                POOL,
            )
            chosen = tl.where(code == index, value, 0).to(value.dtype)
            transposed = tl.trans(patches.to(value.dtype))
            total = tl.dot(transposed, chosen, total, input_precision="ieee")
    address = sums + (tl.program_id(0) * INNER + inner)[:, None] * channels + channel[None]
    tl.store(address, total, mask=(channel < channels)[None])
