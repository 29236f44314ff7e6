"""A convolution with its bias, pooling and ReLU in one pass over a GPU's memory.

cuDNN's products run near the hardware's rate. What stands between them does not: with an operator for each, bias,
pooling (whose indices torch keeps in 64 bits) and ReLU read and write the activations so often that they take as long
as the products. Here one kernel reads what the convolution gave and writes what the next one takes, with a byte for
each number: where in its window the maximum was, or that ReLU lets nothing through. The first convolution multiplies so
little for what it would write that it is part of the kernel. Activations are [N, C, H, W] in channels_last.

Importing this imports Triton, which comes with torch for CUDA.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from triton import language as tl

FEW_CHANNELS = 3  # of the images: the kernel makes the first convolution itself
DEAD = tl.constexpr(127)  # the place of a number that ReLU made zero
CHANNELS = 64  # of a program's tile; its pixels, the fastest of 16 to 128 on an H200, differ
TAIL_FORWARD = 16
TAIL_BACKWARD = 64
FIRST_FORWARD = 64
FIRST_BACKWARD = 16
PROGRAMS = 1024  # that share a sum over all pixels


def convolution(images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """relu(max_pool(conv2d(images, weight) + bias)): 3x3 or 1x1, the size kept, then windows of `pool` (1: no pooling).

    Multiplies in autocast's format where that is on. [N, C, H, W] -> [N, K, H // pool, W // pool].
    """
    if images.shape[1] <= FEW_CHANNELS and weight.shape[2] == 3 and not images.requires_grad:
        return _First.apply(images, weight, bias, pool)
    return bias_pool_relu(
        functional.conv2d(images, weight, padding=weight.shape[2] // 2), bias, pool
    )


def bias_pool_relu(images: Tensor, bias: Tensor | None, pool: int) -> Tensor:
    """relu(max_pool(images + bias)). [N, C, H, W] -> [N, C, H // pool, W // pool]."""
    bias = images.new_zeros(images.shape[1]) if bias is None else bias
    return _Tail.apply(images.contiguous(memory_format=torch.channels_last), bias, pool)


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, bias: Tensor, pool: int) -> Tensor:
        count, channels, height, width = images.shape
        out = _empty(images, (count, channels, height // pool, width // pool))
        place = torch.empty_like(out, dtype=torch.int8)
        pixels = out.numel() // channels
        _tail_forward[_grid(pixels, TAIL_FORWARD, channels)](
            images, bias, out, place, height, width, channels, pixels, pool, TAIL_FORWARD, CHANNELS
        )
        ctx.save_for_backward(place)
        ctx.pool = pool
        ctx.shape = images.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (place,), (_, channels, height, width) = ctx.saved_tensors, ctx.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        before = _empty(gradient, ctx.shape)
        pixels = place.numel() // channels
        if height % ctx.pool or width % ctx.pool:
            before.zero_()  # the last row or column is in no window
        grid = _grid(pixels, TAIL_BACKWARD, channels, PROGRAMS)
        sums = torch.empty(grid[0], channels, device=gradient.device)
        _tail_backward[grid](
            gradient,
            place,
            before,
            sums,
            height,
            width,
            channels,
            pixels,
            ctx.pool,
            TAIL_BACKWARD,
            CHANNELS,
        )
        return before, sums.sum(0), None


class _First(torch.autograd.Function):
    """The first convolution, 3x3, with its bias, pooling and ReLU. The images get no gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
        on = torch.is_autocast_enabled(images.device.type)
        kind = torch.get_autocast_dtype(images.device.type) if on else images.dtype
        count, depth, height, width = images.shape
        channels = len(weight)
        inner = max(16, triton.next_power_of_2(9 * depth + 1))
        matrix = torch.cat(
            [weight.reshape(channels, -1), bias[:, None]], 1
        )  # the bias meets a pixel that is one
        matrix = functional.pad(matrix, (0, inner - matrix.shape[1])).T.to(kind).contiguous()
        out = _empty(matrix, (count, channels, height // pool, width // pool))
        place = torch.empty_like(out, dtype=torch.int8)
        pixels = out.numel() // channels
        _first_forward[_grid(pixels, FIRST_FORWARD, channels)](
            images,
            *images.stride(),
            matrix,
            out,
            place,
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
        ctx.save_for_backward(images, place)
        ctx.pool = pool
        ctx.inner = inner
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        images, place = ctx.saved_tensors
        _, depth, height, width = images.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        channels = gradient.shape[1]
        pixels = place.numel() // gradient.shape[1]
        grid = _grid(pixels, FIRST_BACKWARD, channels, PROGRAMS)
        sums = torch.empty(grid[0], ctx.inner, channels, device=gradient.device)
        _first_backward[grid](
            images,
            *images.stride(),
            gradient,
            place,
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


def _grid(pixels: int, each: int, channels: int, most: int | None = None) -> tuple[int, int]:
    """Programs of `each` pixels of the result, at `most` so many; and by channels."""
    programs = triton.cdiv(pixels, each)
    return programs if most is None else min(most, programs), triton.cdiv(channels, CHANNELS)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@triton.jit
def _tile(pixel, pixels, channels, CHANNELS: tl.constexpr):
    """Channels of this program, places of its numbers in the result, and which of them there are."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & (channel < channels)[None]
    return channel, pixel.to(tl.int64)[:, None] * channels + channel[None], mask


@triton.jit
def _corner(pixel, height, width, POOL: tl.constexpr):
    """Image, row and column where the window of each pixel of the result begins."""
    rows = height // POOL
    columns = width // POOL
    return pixel // (rows * columns), pixel // columns % rows * POOL, pixel % columns * POOL


@triton.jit
def _window(pixel, channel, height, width, channels, POOL: tl.constexpr):
    """Places of the first number in each window."""
    image, row, column = _corner(pixel, height, width, POOL)
    return ((image * height + row) * width + column).to(tl.int64)[:, None] * channels + channel[
        None
    ]


@triton.jit
def _larger(value, best, place, part: tl.constexpr):
    """As torch's pooling: the first maximum counts, and what is not a number stays."""
    better = (value > best) | (value != value)
    return tl.where(better, value, best), tl.where(better, part, place).to(tl.int8)


@triton.jit
def _store(out, place, index, value, part, mask):
    dead = value <= 0
    tl.store(out + index, tl.where(dead, 0, value).to(out.dtype.element_ty), mask=mask)
    tl.store(place + index, tl.where(dead, DEAD, part).to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _tail_forward(
    images,
    bias,
    out,
    place,
    height,
    width,
    channels,
    pixels,
    POOL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel, index, mask = _tile(pixel, pixels, channels, CHANNELS)
    first = images + _window(pixel, channel, height, width, channels, POOL)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), tl.float32)
    part = tl.zeros([PIXELS, CHANNELS], tl.int8)
    for step in tl.static_range(POOL * POOL):
        away = (step // POOL * width + step % POOL) * channels
        best, part = _larger(
            tl.load(first + away, mask=mask, other=0).to(tl.float32), best, part, step
        )
    shift = tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    _store(out, place, index, best + shift[None], part, mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _tail_backward(
    gradient,
    place,
    before,
    sums,
    height,
    width,
    channels,
    pixels,
    POOL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradient goes to the place of the maximum. sums: [programs, channels], each program's part of the bias's."""
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    for start in range(tl.program_id(0) * PIXELS, pixels, tl.num_programs(0) * PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        channel, index, mask = _tile(pixel, pixels, channels, CHANNELS)
        part = tl.load(place + index, mask=mask, other=DEAD)
        value = tl.load(gradient + index, mask=mask, other=0)
        first = before + _window(pixel, channel, height, width, channels, POOL)
        for step in tl.static_range(POOL * POOL):
            away = (step // POOL * width + step % POOL) * channels
            tl.store(first + away, tl.where(part == step, value, 0), mask=mask)
        total += tl.where(part == DEAD, 0, value.to(tl.float32))
    tl.store(
        sums + tl.program_id(0) * channels + channel, tl.sum(total, 0), mask=channel < channels
    )


@triton.jit
def _patches(
    images,
    across,
    depth,
    down,
    right,
    pixel,
    pixels,
    step: tl.constexpr,
    inner,
    height,
    width,
    DEPTH: tl.constexpr,
    POOL: tl.constexpr,
):
    """[pixels, inner]: the 3x3 around each pixel, channel by channel, then a one for the bias, then zeros."""
    image, row, column = _corner(pixel, height, width, POOL)
    y = (row + step // POOL)[:, None] + inner[None] % 9 // 3 - 1
    x = (column + step % POOL)[:, None] + inner[None] % 3 - 1
    mask = (
        (pixel < pixels)[:, None]
        & (inner < 9 * DEPTH)[None]
        & (y >= 0)
        & (y < height)
        & (x >= 0)
        & (x < width)
    )
    address = (
        images
        + image.to(tl.int64)[:, None] * across
        + inner[None] // 9 * depth
        + y * down
        + x * right
    )
    return tl.where(
        (inner == 9 * DEPTH)[None], 1.0, tl.load(address, mask=mask, other=0).to(tl.float32)
    )


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _first_forward(
    images,
    across,
    depth,
    down,
    right,
    matrix,
    out,
    place,
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
    channel, index, mask = _tile(pixel, pixels, channels, CHANNELS)
    address = matrix + inner[:, None] * channels + channel[None]
    weights = tl.load(address, mask=(channel < channels)[None], other=0)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), tl.float32)
    part = tl.zeros([PIXELS, CHANNELS], tl.int8)
    for step in tl.static_range(POOL * POOL):
        patches = _patches(
            images,
            across,
            depth,
            down,
            right,
            pixel,
            pixels,
            step,
            inner,
            height,
            width,
            DEPTH,
            POOL,
        )
        multiplied = tl.dot(patches.to(weights.dtype), weights, input_precision="ieee")
        best, part = _larger(multiplied, best, part, step)
    _store(out, place, index, best, part, mask)


@triton.jit(do_not_specialize=["height", "width", "pixels"])
def _first_backward(
    images,
    across,
    depth,
    down,
    right,
    gradient,
    place,
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
    """sums: [programs, INNER, channels], each program's part of the gradient of weights and bias."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inner = tl.arange(0, INNER)
    total = tl.zeros([INNER, CHANNELS], tl.float32)
    for start in range(tl.program_id(0) * PIXELS, pixels, tl.num_programs(0) * PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        channel, index, mask = _tile(pixel, pixels, channels, CHANNELS)
        part = tl.load(place + index, mask=mask, other=DEAD)
        value = tl.load(gradient + index, mask=mask, other=0)
        for step in tl.static_range(POOL * POOL):
            patches = _patches(
                images,
                across,
                depth,
                down,
                right,
                pixel,
                pixels,
                step,
                inner,
                height,
                width,
                DEPTH,
                POOL,
            )
            chosen = tl.where(part == step, value, 0).to(value.dtype)
            total = tl.dot(tl.trans(patches.to(value.dtype)), chosen, total, input_precision="ieee")
    address = sums + (tl.program_id(0) * INNER + inner)[:, None] * channels + channel[None]
    tl.store(address, total, mask=(channel < channels)[None])
