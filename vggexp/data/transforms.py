"""From stored pictures to the network's input, a batch at a time, on whatever device the pictures are.

Every change of place is one window: the picture is scaled to a whole number of pixels and a square of `size` is cut out
of it, perhaps partly outside (black) and perhaps mirrored. One window for all is cut by torch's own kernel (`cut`); a
window for each picture by two matrix products (`resample`). Both use the triangle filter of PIL and torchvision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

DRAWS_PER_IMAGE = 11  # uniform draws a picture, used or not: switching one operation on leaves the others' draws as they are
ERASED_AREA = (0.02, 0.4)  # of the picture; Zhong et al. 2020 (arXiv:1708.04896), table 2
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
CHUNK = 1 << 20  # pixels summed at once: small enough for the cache


class Augment(NamedTuple):
    """What is drawn for each training picture; all off by default."""

    flip: float = 0  # probability
    crop: int = (
        0  # largest shift in pixels of the output; He et al. 2016 (arXiv:1512.03385), section 4.2
    )
    scale: tuple[float, ...] | None = (
        None  # (low, high) >= 1: shorter side over size; arXiv:1409.1556, section 3.1
    )
    color: float = (
        0  # standard deviation, in units of `color_basis`; Krizhevsky et al. 2012, section 4.1
    )
    erase: float = 0  # probability; Zhong et al. 2020 (arXiv:1708.04896)


class AugmentParams(NamedTuple):
    """What is done to each picture of a batch; None: nothing."""

    window: Tensor | None = (
        None  # int64 [B, 5]: height and width of the scaled picture, top, left, mirrored
    )
    shift: Tensor | None = None  # [B, C], added to pixels of 0..1
    box: Tensor | None = None  # [B, 4]: top, left, bottom, right of what is blanked


PLAIN = Augment()
UNCHANGED = AugmentParams()


@dataclass(frozen=True, eq=False)
class Preprocess:
    """Images of 0..255, uint8 or float [B, C, H, W], become float32 [B, C, size, size]."""

    size: int
    mean: Tensor | None  # [C], of pixels of 0..1; None: pixels stay 0..1
    std: Tensor | None
    channels_last: bool = False

    def to(self, device: torch.device) -> "Preprocess":
        if self.mean is None or self.std is None:
            return self
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def __call__(self, images: Tensor, changes: AugmentParams = UNCHANGED) -> Tensor:
        if changes.window is None:
            return self.finish(resize_center_crop(images, self.size), changes)
        return self.finish(crop_each(images, changes.window, self.size), changes)

    def finish(self, images: Tensor, changes: AugmentParams = UNCHANGED) -> Tensor:
        """All that needs no neighbours: shift, normalise, blank. images: of 0..255, of any size unless blanked."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        images = images.to(torch.float32, memory_format=order, copy=True)
        mean, shift = (
            0 if value is None else value[..., None, None] for value in (self.mean, changes.shift)
        )
        std = 1 if self.std is None else self.std[:, None, None]
        images.div_(255 * std).add_((shift - mean) / std)
        return images if changes.box is None else erase(images, changes.box)


def sample_augmentation(
    generator: torch.Generator,
    count: int,
    height: int,
    width: int,
    size: int,
    augment: Augment,
    basis: Tensor | None = None,
) -> AugmentParams:
    """The changes of `count` pictures of height x width, made on the CPU so that they are the same for every device."""
    uniform = torch.rand(count, DRAWS_PER_IMAGE, generator=generator)
    moved = augment.flip or augment.crop or augment.scale
    window = crop_windows(uniform, height, width, size, augment) if moved else None
    shift = None
    if augment.color:
        if basis is None:
            raise ValueError("augment.color needs the color_basis of the training images")
        shift = augment.color * torch.randn(count, len(basis), generator=generator) @ basis
    return AugmentParams(
        window, shift, erase_boxes(uniform[:, 6:], size, augment.erase) if augment.erase else None
    )


def crop_windows(uniform: Tensor, height: int, width: int, size: int, augment: Augment) -> Tensor:
    """int64 [B, 5] as in Changes, from uniform draws [B, >= 6]. Without augmentation: the square in the middle."""
    low, high = augment.scale or (1, 1)
    side = (size * (low + (high - low) * uniform[:, 0])).round().long()
    sides = torch.stack([height * side, width * side], 1) // min(height, width)
    room = sides - size
    place = (uniform[:, 1:3] * (room + 1)).long() if augment.scale else (room / 2).round().long()
    place = place + (uniform[:, 3:5] * (2 * augment.crop + 1)).long() - augment.crop
    return torch.cat([sides, place, uniform[:, 5:6].lt(augment.flip)], 1)


def resize_center_crop(images: Tensor, size: int) -> Tensor:
    """The square in the middle, its side scaled to `size`: torchvision's Resize and CenterCrop."""
    return crop(images, center_window(images.shape[-2], images.shape[-1], size), size)


@cache
def center_window(height: int, width: int, size: int) -> list[int]:
    """The window of `fit`: the same for every batch, and as many small operators as half a small network."""
    return crop_windows(torch.zeros(1, DRAWS_PER_IMAGE), height, width, size, PLAIN)[0].tolist()


def resize_matrices(height: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """rows [size, height] and columns [width, size]: `fit` of uint8 images on the CPU is rows @ (images @ columns).

    Each product is rounded, halves upward. The weights are rounded as torch's kernel does (to 16 bits): without that, 3
    of 100 pixels of a picture that goes from 28 to 96 differ. A weight on the edge between two still may, by 1 of 255.
    """
    window = torch.tensor([center_window(height, width, size)])
    tall, wide, top, left, mirrored = window.unbind(1)
    rows = _filters(height, tall, top, torch.zeros_like(mirrored), size)[0]
    columns = _filters(width, wide, left, mirrored, size)[0]
    return _in_16_bits(rows), _in_16_bits(columns).T.contiguous()


def _in_16_bits(weights: Tensor) -> Tensor:
    """Multiples of the least power of two with which the largest weight stays below 2^15."""
    bits = next(
        bits for bits in range(22, -1, -1) if int(0.5 + float(weights.max()) * 2**bits) < 1 << 15
    )
    return (weights.double() * 2**bits + 0.5).floor().div(2**bits).float()


def resize_shorter_side(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] with their shorter side scaled to `side`, the other in proportion."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    return scaled(images, height * side // shorter, width * side // shorter)


def scaled(images: Tensor, height: int, width: int) -> Tensor:
    """Images [B, C, height, width]. uint8 on the CPU stays uint8: rounded as PIL does, and 4 times faster."""
    if images.shape[-2:] == (height, width):
        return images
    images = images if images.device.type == "cpu" else images.float()
    return functional.interpolate(images, (height, width), mode="bilinear", antialias=True)


def crop_grid(height: int, width: int, size: int, count: int) -> list[tuple[int, ...]]:
    """count x count windows, as in Changes, at even distances over the picture; one alone is in the middle."""

    def places(room: int) -> list[int]:
        return (
            [round(room * index / (count - 1)) for index in range(count)]
            if count > 1
            else [round(room / 2)]
        )

    return [
        (height, width, top, left, 0)
        for top in places(height - size)
        for left in places(width - size)
    ]


def crop(images: Tensor, window: Sequence[int], size: int) -> Tensor:
    """One window for all images [B, C, H, W]."""
    height, width, top, left, mirrored = window
    images = scaled(images, height, width)
    outside = (-left, left + size - width, -top, top + size - height)
    images = (
        functional.pad(images, outside) if any(outside) else images
    )  # negative padding cuts away
    return images.flip(-1) if mirrored else images


def crop_each(images: Tensor, window: Tensor, size: int) -> Tensor:
    """A window [B, 5] for each image. Pictures only moved are copied on the CPU, with the bits of `resample`."""
    if (
        len(images)
        and images.device.type == "cpu"
        and (window[:, :2] == torch.tensor(images.shape[2:])).all()
    ):
        return torch.cat(
            [
                crop(image[None], frame, size)
                for image, frame in zip(images, window.tolist(), strict=True)
            ]
        )
    return resample(images, window, size)


def resample(images: Tensor, window: Tensor, size: int) -> Tensor:
    """A window [B, 5] for each image: float32 [B, C, size, size] = rows @ image @ columns.

    Where the caller allows TF32, each of the two products rounds its factors to 2^-10 at worst: 0.75/255 in all.
    """
    height, width, top, left, mirrored = window.unbind(1)
    rows = _filters(images.shape[2], height, top, torch.zeros_like(mirrored), size)
    columns = _filters(images.shape[3], width, left, mirrored, size)
    across = images.float().flatten(1, 2) @ columns.mT
    return rows[:, None] @ across.unflatten(1, images.shape[1:3])


def _filters(length: int, scaled: Tensor, first: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """[B, size, length]: how much each source pixel gives to each output pixel; nothing to one outside the picture."""
    output = torch.arange(size, device=scaled.device)
    place = first[:, None] + torch.where(mirrored[:, None] > 0, size - 1 - output, output)
    step = (length / scaled)[:, None]
    centre = (place + 0.5) * step
    source = torch.arange(length, device=scaled.device) + 0.5
    weights = (1 - (source - centre[..., None]).abs() / step.clamp(min=1)[..., None]).clamp(min=0)
    inside = (place >= 0) & (place < scaled[:, None])
    return weights * (inside / weights.sum(-1).clamp(min=1e-6))[..., None]


def erase_boxes(uniform: Tensor, size: int, probability: float) -> Tensor:
    """int64 [B, 4] as in Changes, from uniform draws [B, 5]; an empty box where nothing is blanked.

    Where the paper draws again until the box fits, the aspect is limited to what fits.
    """
    chosen, area, aspect, *place = uniform.unbind(1)
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area) * (chosen < probability)
    aspect = ERASED_ASPECT[0] * (ERASED_ASPECT[1] / ERASED_ASPECT[0]) ** aspect
    aspect = aspect.clamp(area, 1 / area)
    sides = (size * torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1)).round()
    corner = (torch.stack(place, 1) * (size - sides + 1)).floor()
    return torch.cat([corner, corner + sides], 1).long()


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Zeros, the mean of normalised images, inside each image's box [B, 4]; in place."""
    rows, columns = (torch.arange(side, device=box.device) for side in images.shape[-2:])
    top, left, bottom, right = box[..., None].unbind(1)
    tall = (rows >= top) & (rows < bottom)
    wide = (columns >= left) & (columns < right)
    return images.mul_(
        ~(tall[:, :, None] & wide[:, None])[:, None]
    )  # 3 times faster than masked_fill_


def channel_mean_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of each channel of uint8 images [N, C, H, W] on the CPU, for pixels of 0..1."""
    mean, covariance = _moments(images)
    deviation = covariance.diagonal().sqrt()
    return mean.float(), torch.where(deviation > 0, deviation, 1).float()


def color_basis(images: Tensor) -> Tensor:
    """[C, C], the square root of the colours' covariance: normal draws times it vary as the pixels of 0..1 do.

    These are shifts along the principal components (Krizhevsky et al. 2012, section 4.1), each in units of its standard
    deviation; with one channel, a change of brightness.
    """
    values, vectors = torch.linalg.eigh(_moments(images)[1])
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float()


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C], float64, from exact sums: integers below 2^53."""
    channels = images.shape[1]
    pixels = images.shape[2] * images.shape[3]
    total = torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for part in images.flatten(2).split(max(1, CHUNK // (channels * pixels))):
        part = part.double()
        total += part.sum((0, 2))
        products += (part @ part.mT).sum(0)
    mean = total / (len(images) * pixels)
    return mean / 255, (products / (len(images) * pixels) - mean.outer(mean)) / 255**2
