"""Yields batches of images on the device.

A training batch is a pure function of (seed, epoch, index). Nothing is stored, and an epoch may
start at any batch. Several ranks share the work: in training each rank takes its part of the
images of each batch, and in an evaluation its part of the batches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.image_stats import color_basis
from vggexp.data.transforms import (
    NO_CHANGES,
    AugmentParams,
    CropWindow,
    Preprocess,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.data.workers import (
    DecodeRequest,
    DecoderPool,
    FullImageDecoder,
    ImageDecoder,
    PackedImages,
    print_warning,
)
from vggexp.distributed import collectives
from vggexp.rng import generator

MAX_MEMORY_SHARE = 1 / 4  # of the device's free memory; larger data sets stay in RAM

# float32 [B, C, size, size]; int64 [B], or the shares of the classes, float32 [B, K]
Batch = tuple[Tensor, Tensor]


class SameShapeImages(NamedTuple):
    """Images of a batch that have one shape, not yet normalized."""

    indices: list[int]  # positions in the batch
    images: Tensor  # of 0..255, [len(indices), C, height, width]


# For each scale the groups that make up the batch; labels int64 [B].
MultiScaleBatch = tuple[list[list[SameShapeImages]], Tensor]


def epoch_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Returns the epoch's permutation of 0..count-1, on the CPU."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


class InMemoryLoader:
    """Loads from a tensor of all images: on the device, or in RAM.

    Args:
        images: uint8 [N, C, H, W], on the CPU.
        labels: int64 [N], on the CPU.
        batch_size: images of a batch of all ranks.
        cache: `device`, `ram`, or `auto`: on the device if the images fit.
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
        augment: Augment = NO_AUGMENTATION,
        cache: str = "auto",
    ):
        storage = device
        if cache == "ram" or (cache == "auto" and not _fits(images, device)):
            storage = torch.device("cpu")
        self.images = images.to(storage)
        self.labels = labels.to(storage)
        self.preprocess = preprocess.to(device)
        self.basis = color_basis(images) if augment.color else None
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.augment = augment
        self.count = len(images)
        self.batches_per_epoch = -(-self.count // batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the epoch's batches from index `start` on, each image once.

        The last batch may be short. It may be empty on a rank.
        """
        order = epoch_permutation(self.seed, epoch, self.count)
        order = to_device(order, self.images.device)
        for index in range(start, self.batches_per_epoch):
            indices = self._batch_indices(order, index)
            images, labels = self._select(indices[collectives.rank_slice()])
            changes = self._changes(epoch, index, len(indices))
            yield self.preprocess(images, changes), labels

    def evaluate(self) -> Iterator[Batch]:
        """Yields this rank's batches of all images in their order, without augmentation."""
        order = torch.arange(self.count, device=self.images.device)
        batches = range(self.batches_per_epoch)
        for index in batches[collectives.rank_slice()]:
            images, labels = self._select(self._batch_indices(order, index))
            yield self.preprocess(images), labels

    def full_images(self, sizes: Sequence[int]) -> Iterator[MultiScaleBatch]:
        """Yields all images in order and uncropped, once for each size of the shorter side."""
        order = torch.arange(self.count, device=self.images.device)
        for index in range(self.batches_per_epoch):
            images, labels = self._select(self._batch_indices(order, index))
            indices = list(range(len(images)))
            scales = []
            for size in sizes:
                resized = resize_shorter_side(images, size)
                scales.append([SameShapeImages(indices, resized)])
            yield scales, labels

    def _batch_indices(self, order: Tensor, index: int) -> Tensor:
        start = index * self.batch_size
        return order[start : start + self.batch_size]

    def _select(self, indices: Tensor) -> Batch:
        images = to_device(self.images[indices], self.device)
        labels = to_device(self.labels[indices], self.device)
        return images, labels

    def _changes(self, epoch: int, index: int, count: int) -> AugmentParams:
        """Draws the changes of all `count` images of the batch; returns those of this rank.

        So an image gets the same changes for any number of ranks.
        """
        augment = self.augment.in_epoch(epoch)
        if not any(augment):
            return NO_CHANGES
        height, width = self.images.shape[-2:]
        changes = sample_augmentation(
            generator(self.seed, "augment", epoch, index),
            count,
            height,
            width,
            self.preprocess.size,
            augment,
            self.basis,
        )
        rows = collectives.rank_slice()
        changes = changes.apply(lambda values: values[rows])
        return _changes_to_device(changes, self.device)


class StreamingLoader:
    """Loads from image files, which worker processes decode and crop while the model trains.

    The draws of an image depend only on (seed, epoch, index of the image), so the number of
    workers changes nothing. Only one iteration may run at a time. Iterating raises DataError for a
    damaged file, and ResourceError for a worker that hangs or was killed twice.

    Args:
        batch_size: images of a batch of all ranks.
        workers: number of worker processes; 0: this process decodes.
        basis: `color_basis` of the training images, if `augment.color` is set.
        warn: prints a line about a worker that was replaced.
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
        augment: Augment = NO_AUGMENTATION,
        basis: Tensor | None = None,
        warn: Callable[[str], None] = print_warning,
    ):
        self.labels = torch.as_tensor(labels)
        self.preprocess = preprocess.to(device)
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.count = len(paths)
        self.batches_per_epoch = -(-self.count // batch_size)
        decoder = ImageDecoder(paths, preprocess.size, seed, augment, basis)
        self._pool = DecoderPool(decoder, workers, warn)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields batches as InMemoryLoader.train does."""
        order = epoch_permutation(self.seed, epoch, self.count)
        batches = order.split(self.batch_size)[start:]
        rows = collectives.rank_slice()
        return self._read(epoch, [indices[rows] for indices in batches])

    def evaluate(self) -> Iterator[Batch]:
        """Yields batches as InMemoryLoader.evaluate does."""
        batches = torch.arange(self.count).split(self.batch_size)
        return self._read(None, batches[collectives.rank_slice()])

    def full_images(self, sizes: Sequence[int]) -> Iterator[MultiScaleBatch]:
        """Yields batches as InMemoryLoader.full_images does.

        A worker sends no more bytes at a time than for a batch in training.
        """
        decoder = FullImageDecoder(self._pool.decoder.paths, sizes)
        pool = DecoderPool(decoder, self._pool.workers, self._pool.warn)
        pixels = sum(size * size for size in sizes)
        images_per_request = max(1, self.batch_size * self.preprocess.size**2 // pixels)
        batches = torch.arange(self.count).split(self.batch_size)
        requests: list[DecodeRequest] = []
        for batch in batches:
            for part in batch.split(images_per_request):
                requests.append((None, part.tolist()))
        decoded = pool.decode(requests)
        for batch in batches:
            parts = [next(decoded) for _ in batch.split(images_per_request)]
            scales = []
            for scale in zip(*parts, strict=True):
                scales.append(list(_group_by_shape(scale, self.device)))
            yield scales, self._select_labels(batch)

    def _select_labels(self, indices: Tensor) -> Tensor:
        return to_device(self.labels[indices], self.device)

    def _read(self, epoch: int | None, batches: Sequence[Tensor]) -> Iterator[Batch]:
        requests = [(epoch, indices.tolist()) for indices in batches if len(indices)]
        decoded = self._pool.decode(requests)
        for indices in batches:
            if len(indices):
                images, changes = next(decoded)
            else:
                size = self.preprocess.size
                images = torch.empty(0, 3, size, size, dtype=torch.uint8)
                changes = NO_CHANGES
            images = to_device(images, self.device)
            changes = _changes_to_device(changes, self.device)
            yield self.preprocess.normalize(images, changes), self._select_labels(indices)


Loader = InMemoryLoader | StreamingLoader


def _group_by_shape(
    parts: Iterable[PackedImages],
    device: torch.device,
) -> Iterator[SameShapeImages]:
    """Unpacks the parts of a batch, and groups the images by their shapes."""
    images: list[Tensor] = []
    for part in parts:
        lengths = [3 * height * width for height, width in part.shapes]
        chunks = to_device(part.values, device).split(lengths)
        for chunk, (height, width) in zip(chunks, part.shapes, strict=True):
            images.append(chunk.view(3, height, width))
    for shape in dict.fromkeys(image.shape for image in images):
        indices = [index for index, image in enumerate(images) if image.shape == shape]
        yield SameShapeImages(indices, torch.stack([images[index] for index in indices]))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to CUDA from page-locked memory, so that the copy overlaps with the model's work."""
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _changes_to_device(changes: AugmentParams, device: torch.device) -> AugmentParams:
    """Copies to the device; the five tensors of the window are copied as one."""
    if device.type == "cpu":
        return changes
    window = changes.window
    if window is not None:
        stacked = to_device(torch.stack(window), device)
        window = CropWindow(*stacked)
    shift = changes.shift
    if shift is not None:
        shift = to_device(shift, device)
    box = changes.box
    if box is not None:
        box = to_device(box, device)
    return AugmentParams(window, shift, box)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return True
    return images.nbytes < free * MAX_MEMORY_SHARE
