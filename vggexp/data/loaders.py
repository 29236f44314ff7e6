"""Batches of pictures on the device. A training batch is a pure function of (seed, epoch, index): nothing is stored,
and an epoch may start at any batch. Of several ranks each takes its share: in training of the pictures of each batch,
in an evaluation of the batches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggexp.data.transforms import (
    PLAIN,
    UNCHANGED,
    Augment,
    AugmentParams,
    Preprocess,
    color_basis,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.data.workers import DecoderPool, FullImageDecoder, ImageDecoder, PackedImages
from vggexp.distributed import collectives
from vggexp.rng import generator

MAX_MEMORY_SHARE = (
    4  # pictures stay on the device where they take less than this part of its free memory
)

Batch = tuple[Tensor, Tensor]  # float32 [B, C, size, size], int64 [B]


class SameShapeImages(NamedTuple):
    """Pictures of a batch that have one shape, not yet normalised."""

    places: list[int]  # in the batch
    images: Tensor  # of 0..255, [len(places), C, height, width]


MultiScaleBatch = tuple[
    list[list[SameShapeImages]], Tensor
]  # for each scale the groups that make up the batch; labels int64 [B]


def epoch_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The epoch's permutation of 0..count-1, on the CPU."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


class InMemoryLoader:
    """All pictures in memory: uint8 [N, C, H, W] on the device, or in RAM where they do not fit or cache is `ram`.

    images, labels: on the CPU. cache: auto, device or ram.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        augment: Augment = PLAIN,
        cache: str = "auto",
    ):
        home = (
            torch.device("cpu")
            if cache == "ram" or (cache == "auto" and not _fits(images, device))
            else device
        )
        self.images = images.to(home)
        self.labels = labels.to(home)
        self.preprocess = preprocess.to(device)
        self.basis = color_basis(images) if augment.color else None
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.augment = augment
        self.count = len(images)
        self.batches_per_epoch = -(-self.count // batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on, each picture once; the last may be short, or empty on a rank."""
        places = _to_device(epoch_permutation(self.seed, epoch, self.count), self.images.device)
        for index in range(start, self.batches_per_epoch):
            chosen = self._batch(places, index)
            images, labels = self._take(chosen[collectives.rank_slice()])
            yield self.preprocess(images, self._changes(epoch, index, len(chosen))), labels

    def evaluate(self) -> Iterator[Batch]:
        """All pictures in their order, without augmentation."""
        places = torch.arange(self.count, device=self.images.device)
        for index in range(self.batches_per_epoch)[collectives.rank_slice()]:
            images, labels = self._take(self._batch(places, index))
            yield self.preprocess(images), labels

    def full_images(self, sides: Sequence[int]) -> Iterator[MultiScaleBatch]:
        """All pictures in their order and uncut, once for each of `sides`, which their shorter side is scaled to."""
        places = torch.arange(self.count, device=self.images.device)
        for index in range(self.batches_per_epoch):
            images, labels = self._take(self._batch(places, index))
            yield (
                [
                    [SameShapeImages(list(range(len(images))), resize_shorter_side(images, side))]
                    for side in sides
                ],
                labels,
            )

    def _batch(self, places: Tensor, index: int) -> Tensor:
        return places[index * self.batch_size : (index + 1) * self.batch_size]

    def _take(self, chosen: Tensor) -> Batch:
        return _to_device(self.images[chosen], self.device), _to_device(
            self.labels[chosen], self.device
        )

    def _changes(self, epoch: int, index: int, count: int) -> AugmentParams:
        """Drawn for all `count` pictures of the batch, so that each meets the same ones whatever the ranks."""
        if not any(self.augment):
            return UNCHANGED
        draws = generator(self.seed, "augment", epoch, index)
        height, width = self.images.shape[-2:]
        changes = sample_augmentation(
            draws, count, height, width, self.preprocess.size, self.augment, self.basis
        )
        return AugmentParams(
            *(
                None
                if change is None
                else _to_device(change[collectives.rank_slice()], self.device)
                for change in changes
            )
        )


class StreamingLoader:
    """Pictures in files, decoded and cut by `workers` processes (0: by this one) while the network trains.

    The draws of a picture depend on (seed, epoch, its place) alone, so the number of workers changes nothing. basis: of
    `color_basis`, where augment.color is set. One iteration at a time. Raises DataError, ResourceError.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device,
        workers: int,
        seed: int = 0,
        augment: Augment = PLAIN,
        basis: Tensor | None = None,
        warn: Callable[[str], None] = print,
    ):
        self.labels = torch.as_tensor(labels)
        self.preprocess = preprocess.to(device)
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.count = len(paths)
        self.batches_per_epoch = -(-self.count // batch_size)
        decoder = ImageDecoder(paths, preprocess.size, seed, augment, basis)
        self._decoders = DecoderPool(decoder, workers, pinned=device.type == "cuda", warn=warn)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As Resident.train."""
        batches = epoch_permutation(self.seed, epoch, self.count).split(self.batch_size)[start:]
        return self._read(epoch, [places[collectives.rank_slice()] for places in batches])

    def evaluate(self) -> Iterator[Batch]:
        return self._read(
            None, torch.arange(self.count).split(self.batch_size)[collectives.rank_slice()]
        )

    def full_images(self, sides: Sequence[int]) -> Iterator[MultiScaleBatch]:
        """As Resident.whole. A worker sends no more bytes at a time than for a batch in training."""
        old = self._decoders
        decoders = DecoderPool(
            FullImageDecoder(old.decoder.paths, sides), old.workers, old.pinned, old.warn
        )
        most = max(
            1, self.batch_size * self.preprocess.size**2 // sum(side * side for side in sides)
        )
        batches = [places.split(most) for places in torch.arange(self.count).split(self.batch_size)]
        decoded = decoders.decode([(None, part.tolist()) for parts in batches for part in parts])
        for parts in batches:
            scales = zip(*(next(decoded) for _ in parts), strict=True)
            yield (
                [list(_groups(packed, self.device)) for packed in scales],
                self._labels_of(torch.cat(parts)),
            )

    def _none(self) -> Tensor:
        return torch.empty(0, 3, self.preprocess.size, self.preprocess.size, dtype=torch.uint8)

    def _labels_of(self, places: Tensor) -> Tensor:
        return _to_device(self.labels[places], self.device)

    def _read(self, epoch: int | None, batches: Sequence[Tensor]) -> Iterator[Batch]:
        decoded = self._decoders.decode(
            [(epoch, places.tolist()) for places in batches if len(places)]
        )
        for places in batches:
            images, changes = next(decoded) if len(places) else (self._none(), UNCHANGED)
            changes = AugmentParams(*(_to_device(change, self.device) for change in changes))
            yield (
                self.preprocess.finish(_to_device(images, self.device), changes),
                self._labels_of(places),
            )


Loader = InMemoryLoader | StreamingLoader


def _groups(packed: Iterable[PackedImages], device: torch.device) -> Iterator[SameShapeImages]:
    """The pictures of a batch, in parts, by their shapes."""
    pictures: list[Tensor] = []
    for flat, shapes in packed:
        each = _to_device(flat, device).split([3 * height * width for height, width in shapes])
        pictures += (picture.view(3, *shape) for picture, shape in zip(each, shapes, strict=True))
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        places = [place for place, picture in enumerate(pictures) if picture.shape == shape]
        yield SameShapeImages(places, torch.stack([pictures[place] for place in places]))


def _to_device(tensor: Any, device: torch.device) -> Any:
    """To CUDA from page-locked memory, so that the copy runs beside the network. None stays None."""
    if tensor is None or tensor.device.type == device.type:
        return tensor
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return True
    return images.nbytes < free / MAX_MEMORY_SHARE
