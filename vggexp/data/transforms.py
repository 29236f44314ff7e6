"""Turns stored images into the network's input, one batch at a time, on any device.

Every geometric change is one crop window. The image is scaled to a whole number of pixels, and a
square of `size` pixels is cut out of the scaled image. The square may lie partly outside (those
pixels are black) and may be mirrored. `crop` cuts one window out of all images with torch's own
kernel. `resample` cuts a window of its own out of each image with two matrix products. Both use
the triangle filter of PIL and torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vggexp.data.augment import NO_AUGMENTATION, Augment

# Uniform draws for each image, used or not: enabling one operation leaves the draws of the
# others as they are. Column 0: scale. 1, 2: position. 3, 4: shift. 5: flip. 6 to 10: erasing.
DRAWS_PER_IMAGE = 11
# Ranges of Zhong et al. 2020 (arXiv:1708.04896), table 2. The draws are those of torchvision's
# RandomErasing: uniform in the area, which ends at 0.33 there, and in the logarithm of the aspect.
ERASED_AREA = (0.02, 0.4)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width


class Crop(NamedTuple):
    """A square cut out of a scaled image."""

    height: int  # of the scaled image
    width: int
    top: int  # of the square in the scaled image; negative: above the image
    left: int
    mirrored: int = 0  # 1: left and right are exchanged


class CropWindow(NamedTuple):
    """A `Crop` for each image of a batch: five int64 tensors [B]."""

    height: Tensor
    width: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor

    def crops(self) -> list[Crop]:
        """Returns the window of each image as integers of Python."""
        columns = [values.tolist() for values in self]
        return [Crop(*values) for values in zip(*columns, strict=True)]


class AugmentParams(NamedTuple):
    """Changes drawn for each image of a batch. None: no change of this sort."""

    window: CropWindow | None = None
    shift: Tensor | None = None  # [B, C], added to pixels of 0..1
    box: Tensor | None = None  # int64 [B, 4]: top, left, bottom, right of the erased pixels

    def apply(self, function: Callable[[Tensor], Tensor]) -> "AugmentParams":
        """Returns the changes with `function` applied to each tensor."""
        return AugmentParams(
            window=None if self.window is None else CropWindow(*map(function, self.window)),
            shift=None if self.shift is None else function(self.shift),
            box=None if self.box is None else function(self.box),
        )


NO_CHANGES = AugmentParams()


@dataclass(frozen=True, eq=False)
class Preprocess:
    """Turns images of 0..255, uint8 or float [B, C, H, W], into float32 [B, C, size, size]."""

    size: int
    mean: Tensor | None  # [C], of pixels of 0..1; None: pixels stay 0..1
    std: Tensor | None
    channels_last: bool = False

    def to(self, device: torch.device) -> "Preprocess":
        if self.mean is None or self.std is None:
            return self
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def __call__(self, images: Tensor, changes: AugmentParams = NO_CHANGES) -> Tensor:
        if changes.window is None:
            images = resize_center_crop(images, self.size)
        else:
            images = crop_each(images, changes.window, self.size)
        return self.normalize(images, changes)

    def normalize(self, images: Tensor, changes: AugmentParams = NO_CHANGES) -> Tensor:
        """Shifts colors, normalizes and erases: everything that needs no neighboring pixels.

        Args:
            images: values of 0..255. Any height and width, unless `changes` erases.
            changes: its window is not used.
        """
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        images = images.to(torch.float32, memory_format=memory_format, copy=True)
        mean = 0 if self.mean is None else self.mean[:, None, None]
        std = 1 if self.std is None else self.std[:, None, None]
        shift = 0 if changes.shift is None else changes.shift[..., None, None]
        images.div_(255 * std)
        images.add_((shift - mean) / std)
        if changes.box is None:
            return images
        return erase(images, changes.box)


def sample_augmentation(
    generator: torch.Generator,
    count: int,
    height: int,
    width: int,
    size: int,
    augment: Augment,
    basis: Tensor | None = None,
) -> AugmentParams:
    """Draws the changes of `count` images of height x width.

    The draws are made on the CPU, so they are the same for every device.

    Args:
        basis: `color_basis` of the training images.

    Raises:
        ValueError: `augment.color` is set, and there is no basis.
    """
    uniform = torch.rand(count, DRAWS_PER_IMAGE, generator=generator)
    window = None
    shift = None
    box = None
    if augment.flip or augment.crop or augment.scale:
        window = crop_windows(uniform, height, width, size, augment)
    if augment.color:
        if basis is None:
            raise ValueError("augment.color needs the color_basis of the training images")
        normal = torch.randn(count, len(basis), generator=generator)
        shift = augment.color * normal @ basis
    if augment.erase:
        box = erase_boxes(uniform[:, 6:], size, augment.erase)
    return AugmentParams(window, shift, box)


def crop_windows(
    uniform: Tensor,
    height: int,
    width: int,
    size: int,
    augment: Augment,
) -> CropWindow:
    """Computes the windows of images of height x width from uniform draws [B, >= 6].

    Without augmentation each window is the square in the center.
    """
    low, high = augment.scale or (1, 1)
    shorter = size * (low + (high - low) * uniform[:, 0])
    shorter = shorter.round().long()
    sides = torch.stack([height * shorter, width * shorter], 1)
    sides = sides // min(height, width)
    margin = sides - size
    if augment.scale:
        corner = uniform[:, 1:3] * (margin + 1)
        corner = corner.long()
    else:
        corner = (margin / 2).round().long()
    shift = uniform[:, 3:5] * (2 * augment.crop + 1)
    corner = corner + shift.long() - augment.crop
    scaled_height, scaled_width = sides.unbind(1)
    top, left = corner.unbind(1)
    mirrored = uniform[:, 5] < augment.flip
    return CropWindow(scaled_height, scaled_width, top, left, mirrored.long())


def resize_center_crop(images: Tensor, size: int) -> Tensor:
    """Scales the shorter side to `size` and cuts out the square in the center.

    The result is that of torchvision's Resize and CenterCrop.
    """
    height, width = images.shape[-2:]
    return crop(images, center_window(height, width, size), size)


@cache
def center_window(height: int, width: int, size: int) -> Crop:
    """Returns the window of `resize_center_crop`.

    The window is cached. Every batch needs the same one, and computing it takes as many small
    operators as half a small network.
    """
    draws = torch.zeros(1, DRAWS_PER_IMAGE)
    window = crop_windows(draws, height, width, size, NO_AUGMENTATION)
    return window.crops()[0]


def resize_matrices(height: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns `resize_center_crop` of uint8 images on the CPU as two matrices.

    The result is rows @ (images @ columns), with each product rounded, halves upward. The weights
    are rounded as torch's kernel rounds them (to 16 bits). Without that, 3 of 100 pixels differ
    when an image is resized from 28 to 96. A weight halfway between two roundings may still change
    a pixel by 1 of 255.

    Returns:
        rows [size, height] and columns [width, size].
    """
    window = center_window(height, width, size)
    unmirrored = torch.tensor([0])
    rows = _filters(
        height,
        torch.tensor([window.height]),
        torch.tensor([window.top]),
        unmirrored,
        size,
    )
    columns = _filters(
        width,
        torch.tensor([window.width]),
        torch.tensor([window.left]),
        unmirrored,
        size,
    )
    rows = _round_to_16_bits(rows[0])
    columns = _round_to_16_bits(columns[0])
    return rows, columns.T.contiguous()


def _round_to_16_bits(weights: Tensor) -> Tensor:
    """Rounds to multiples of 2^-bits, with the most bits for which no weight reaches 2^15."""
    largest = float(weights.max())
    bits = 22
    while bits > 0 and int(0.5 + largest * 2**bits) >= 1 << 15:
        bits -= 1
    scaled = weights.double() * 2**bits
    return (scaled + 0.5).floor().div(2**bits).float()


def resize_shorter_side(images: Tensor, size: int) -> Tensor:
    """Scales images [B, C, H, W] so that the shorter side has `size` pixels."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    return resize(images, height * size // shorter, width * size // shorter)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Scales images to [B, C, height, width].

    uint8 on the CPU stays uint8: rounded as PIL rounds, and 4 times faster.
    """
    if images.shape[-2:] == (height, width):
        return images
    if images.device.type != "cpu":
        images = images.float()
    return functional.interpolate(
        images,
        (height, width),
        mode="bilinear",
        antialias=True,
    )


def crop_grid(
    height: int,
    width: int,
    size: int,
    count: int,
) -> list[Crop]:
    """Returns count x count windows at even distances over an image; a single one is centered."""
    crops = []
    for top in _even_offsets(height - size, count):
        for left in _even_offsets(width - size, count):
            crops.append(Crop(height, width, top, left))
    return crops


def _even_offsets(margin: int, count: int) -> list[int]:
    if count == 1:
        return [round(margin / 2)]
    return [round(margin * index / (count - 1)) for index in range(count)]


def crop(images: Tensor, window: Crop, size: int) -> Tensor:
    """Cuts one window out of all images [B, C, H, W]."""
    images = resize(images, window.height, window.width)
    padding = (
        -window.left,
        window.left + size - window.width,
        -window.top,
        window.top + size - window.height,
    )
    if any(padding):
        images = functional.pad(images, padding)  # negative padding cuts pixels off
    if window.mirrored:
        images = images.flip(-1)
    return images


def crop_each(images: Tensor, window: CropWindow, size: int) -> Tensor:
    """Cuts a window of its own out of each image.

    Images that are not scaled are copied on the CPU. The bits are those of `resample`.
    """
    height, width = images.shape[2:]
    if len(images) and images.device.type == "cpu":
        unscaled = (window.height == height) & (window.width == width)
        if unscaled.all():
            return copy_windows(images, window, size)
    return resample(images, window, size)


def copy_windows(images: Tensor, window: CropWindow, size: int) -> Tensor:
    """Copies a window of its own out of each unscaled image, all rows of a batch in one call."""
    height, width = images.shape[2:]
    top, left = window.top, window.left
    outside = torch.stack([-top, -left, top + size - height, left + size - width])
    margin = max(0, int(outside.max()))
    padded = functional.pad(images, (margin, margin, margin, margin))
    count, channels, height, width = padded.shape
    left = torch.where(window.mirrored > 0, width - margin - left - size, margin + left)
    image = torch.arange(count) + count * window.mirrored  # mirrored images follow the others
    plane = image[:, None] * channels + torch.arange(channels)
    corner = plane * height * width + ((margin + top) * width + left)[:, None]
    row_starts = corner[..., None] + width * torch.arange(size)
    pixels = torch.cat([padded, padded.flip(-1)]).flatten()
    rows = pixels.unfold(0, size, 1)  # a view: the `size` pixels from each pixel on
    return rows.index_select(0, row_starts.flatten()).view(count, channels, size, size)


def resample(images: Tensor, window: CropWindow, size: int) -> Tensor:
    """Cuts a window of its own out of each image: rows @ image @ columns.

    If the caller allows TF32, each of the two products rounds its factors to 2^-10 at worst:
    0.75/255 in all.

    Returns:
        float32 [B, C, size, size].
    """
    height, width = images.shape[2:]
    unmirrored = torch.zeros_like(window.mirrored)
    rows = _filters(
        height,
        window.height,
        window.top,
        unmirrored,
        size,
    )
    columns = _filters(
        width,
        window.width,
        window.left,
        window.mirrored,
        size,
    )
    pixels = images.float().flatten(1, 2)
    pixels = pixels @ columns.mT
    pixels = pixels.unflatten(1, images.shape[1:3])
    return rows[:, None] @ pixels


def _filters(
    length: int,
    scaled_length: Tensor,
    offset: Tensor,
    mirrored: Tensor,
    size: int,
) -> Tensor:
    """Returns the weight of each source pixel in each output pixel, along one axis.

    Args:
        length: pixels of the source image.
        scaled_length: [B], pixels of the scaled image.
        offset: [B], the first output pixel in the scaled image.
        mirrored: [B], 1: the output pixels are in reverse order.

    Returns:
        [B, size, length]. An output pixel outside the image has no weights.
    """
    output = torch.arange(size, device=scaled_length.device)
    output = torch.where(mirrored[:, None] > 0, size - 1 - output, output)
    position = offset[:, None] + output
    step = (length / scaled_length)[:, None]
    center = (position + 0.5) * step
    source = torch.arange(length, device=scaled_length.device) + 0.5
    distance = (source - center[..., None]).abs()
    distance = distance / step.clamp(min=1)[..., None]
    weights = (1 - distance).clamp(min=0)
    inside = (position >= 0) & (position < scaled_length[:, None])
    total = weights.sum(-1).clamp(min=1e-6)
    return weights * (inside / total)[..., None]


def erase_boxes(uniform: Tensor, size: int, probability: float) -> Tensor:
    """Computes boxes as in AugmentParams from uniform draws [B, 5]; a box may be empty.

    Area and aspect are drawn as by torchvision's RandomErasing, within the paper's limits: the mean
    area is 0.21 of the image (0.17 with torchvision's own upper limit, 0.33 of the image).
    The paper draws the aspect uniformly, and a corner anywhere, again and again until the box lies
    in the image: its mean area is 0.14. Here the corner is drawn where the box fits, and the aspect
    is limited to values that fit.
    """
    chosen, area, aspect, *corner = uniform.unbind(1)
    smallest, largest = ERASED_AREA
    area = smallest + (largest - smallest) * area
    area = area * (chosen < probability)
    low, high = ERASED_ASPECT
    aspect = low * (high / low) ** aspect
    aspect = aspect.clamp(area, 1 / area)
    height = (area * aspect).sqrt()
    width = (area / aspect).sqrt()
    sides = size * torch.stack([height, width], 1)
    sides = sides.round()
    first = torch.stack(corner, 1) * (size - sides + 1)
    first = first.floor()
    return torch.cat([first, first + sides], 1).long()


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Writes zeros, the mean of normalized images, into each image's box [B, 4], in place."""
    height, width = images.shape[-2:]
    outside = ~box_mask(box, height, width)
    return images.mul_(outside[:, None])  # 3 times faster than masked_fill_


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """Returns whether each pixel lies in its image's box [B, 4], as bool [B, height, width]."""
    rows = torch.arange(height, device=box.device)
    columns = torch.arange(width, device=box.device)
    top, left, bottom, right = box[..., None].unbind(1)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None]
