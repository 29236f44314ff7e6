"""Mixes the images of a training batch in pairs, on the device: mixup and CutMix.

An image is mixed with the one before it in its batch, the first one with the last. The label of the
mixed image is the share of each class in it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vggexp.data.loaders import Batch, Loader, to_device
from vggexp.data.transforms import box_mask
from vggexp.distributed import collectives
from vggexp.rng import generator

# Uniform draws for each pair, used or not. Column 0: which of the two. 1: share. 2, 3: center.
DRAWS_PER_PAIR = 4


class Mix(NamedTuple):
    """How pairs are mixed. If both are set, each pair draws one of the two with equal chance.

    Sources: Zhang et al. 2018 (arXiv:1710.09412), section 2, for `mixup`; Yun et al. 2019
    (arXiv:1905.04899), section 3, for `cutmix`. Both papers draw one share for a batch; here each
    pair has a share of its own.
    """

    mixup: float | None = None  # a of Beta(a, a), from which the share of the image is drawn
    cutmix: float | None = None  # the same for the area that is kept


class MixParams(NamedTuple):
    """What is drawn for each image of a batch. None: that sort of mixing is off."""

    blend: Tensor | None  # float32 [B]: weight of the image; the other one has the rest
    box: Tensor | None  # int64 [B, 4]: top, left, bottom, right of the pixels of the other image


class MixingLoader:
    """Yields the training batches of another loader, mixed in the epochs before `unmixed_from`.

    The draws depend only on (seed, epoch, batch). Each of several ranks mixes its own images.
    """

    def __init__(self, loader: Loader, mix: Mix, classes: int, unmixed_from: int | None = None):
        self.loader = loader
        self.mix = mix
        self.classes = classes
        self.unmixed_from = unmixed_from
        self.count = loader.count
        self.labels = loader.labels  # not mixed
        self.batches_per_epoch = loader.batches_per_epoch

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields images as the loader does, and labels as float32 [B, classes] that add up to 1."""
        loader = self.loader
        if self.unmixed_from is not None and epoch >= self.unmixed_from:
            for images, labels in loader.train(epoch, start):
                yield images, functional.one_hot(labels, self.classes).float()
            return
        for index, (images, labels) in enumerate(loader.train(epoch, start), start):
            count = min(loader.batch_size, self.count - index * loader.batch_size)
            draws = generator(loader.seed, "mix", epoch, index)
            params = self._own_params(sample_mix(draws, count, images.shape[-1], self.mix))
            shares = label_shares(params, images.shape[-1], labels.shape)
            yield mix_images(images, params), mix_labels(labels, shares, self.classes)

    def _own_params(self, params: MixParams) -> MixParams:
        """Returns the draws of this rank's images, on the device."""
        rows = collectives.rank_slice()
        own = []
        for values in params:
            own.append(None if values is None else to_device(values[rows], self.loader.device))
        return MixParams(*own)


def sample_mix(draws: torch.Generator, count: int, size: int, mix: Mix) -> MixParams:
    """Draws how `count` images of `size` pixels are mixed, on the CPU."""
    uniform = torch.rand(count, DRAWS_PER_PAIR, generator=draws, dtype=torch.float64)
    chance = 0.5 if mix.mixup is not None and mix.cutmix is not None else 1.0
    is_chosen = uniform[:, 0] < chance
    blend = None
    box = None
    if mix.mixup is not None:
        blend = torch.where(is_chosen, _beta(uniform[:, 1], mix.mixup), 1).float()
        is_chosen = ~is_chosen
    if mix.cutmix is not None:
        kept = torch.where(is_chosen, _beta(uniform[:, 1], mix.cutmix), 1)
        box = _boxes(kept, uniform[:, 2:], size)
    return MixParams(blend, box)


def _beta(uniform: Tensor, concentration: float) -> Tensor:
    """Returns draws of Beta(a, a) by the inverse of its distribution function."""
    from scipy.special import betaincinv  # 0.1 s that other runs need not wait for

    return torch.from_numpy(betaincinv(concentration, concentration, uniform.numpy()))


def _boxes(kept: Tensor, center: Tensor, size: int) -> Tensor:
    """Returns squares with 1 - kept of the area around centers 0..1, cut off at the image's edge.

    A pixel is the center, and half of a side is a whole number of pixels, as in torchvision.
    """
    middle = (center * size).long()
    half = (0.5 * (1 - kept).sqrt() * size).long()[:, None]
    return torch.cat([middle - half, middle + half], 1).clamp(0, size)


def label_shares(params: MixParams, size: int, shape: torch.Size) -> Tensor:
    """Returns the share of each image in its pair, float32 [B]."""
    device = next(values.device for values in params if values is not None)
    shares = torch.ones(shape, device=device)
    if params.blend is not None:
        shares = params.blend
    if params.box is not None:
        top, left, bottom, right = params.box.unbind(1)
        shares = shares * (1 - (bottom - top) * (right - left) / size**2)
    return shares


def mix_images(images: Tensor, params: MixParams) -> Tensor:
    """Mixes each image [B, C, H, W] with the one before it. The memory format stays."""
    others = images.roll(1, 0)
    if params.blend is not None:
        weight = params.blend[:, None, None, None]
        images = images * weight + others * (1 - weight)
    if params.box is not None:
        height, width = images.shape[-2:]
        images = torch.where(box_mask(params.box, height, width)[:, None], others, images)
    return images


def mix_labels(labels: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Returns the share of each class in each mixed image, float32 [B, classes]."""
    own = functional.one_hot(labels, classes).float()
    return own * shares[:, None] + own.roll(1, 0) * (1 - shares)[:, None]
