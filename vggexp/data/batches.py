"""Batches of pictures on the device. A training batch is a pure function of (seed, epoch, index): nothing is stored,
and an epoch may start at any batch.
"""

import atexit
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vggexp.data.folder import read_image
from vggexp.data.transforms import PLAIN, UNCHANGED, Augment, Changes, Preprocess, color_basis, cut, draw, fit
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator

PATIENCE_SECONDS = 300  # a worker silent for so long hangs
SHARE = 4  # pictures stay on the device where they take less than this part of its free memory

Batch = tuple[Tensor, Tensor]  # float32 [B, C, size, size], int64 [B]
Request = tuple[int | None, list[int]]  # epoch, None for plain pictures; places of the pictures


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The epoch's permutation of 0..count-1, on the CPU."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


class Resident:
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
        home = torch.device("cpu") if cache == "ram" or (cache == "auto" and not _fits(images, device)) else device
        self.images, self.labels = images.to(home), labels.to(home)
        self.preprocess = preprocess.to(device)
        self.basis = color_basis(images) if augment.color else None
        self.batch_size, self.device, self.seed, self.augment = batch_size, device, seed, augment
        self.count = len(images)
        self.batches_per_epoch = -(-self.count // batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on, each picture once; the last may be short."""
        places = order(self.seed, epoch, self.count).to(self.images.device)
        for index in range(start, self.batches_per_epoch):
            images, labels = self._take(places, index)
            yield self.preprocess(images, self._changes(epoch, index, len(images))), labels

    def evaluate(self) -> Iterator[Batch]:
        """All pictures in their order, without augmentation."""
        places = torch.arange(self.count, device=self.images.device)
        for index in range(self.batches_per_epoch):
            images, labels = self._take(places, index)
            yield self.preprocess(images), labels

    def _take(self, places: Tensor, index: int) -> Batch:
        chosen = places[index * self.batch_size : (index + 1) * self.batch_size]
        return _send(self.images[chosen], self.device), _send(self.labels[chosen], self.device)

    def _changes(self, epoch: int, index: int, count: int) -> Changes:
        if not any(self.augment):
            return UNCHANGED
        draws = generator(self.seed, "augment", epoch, index)
        height, width = self.images.shape[-2:]
        changes = draw(draws, count, height, width, self.preprocess.size, self.augment, self.basis)
        return Changes(*(_send(change, self.device) for change in changes))


class Streaming:
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
    ):
        self.labels, self.preprocess = torch.as_tensor(labels), preprocess.to(device)
        self.batch_size, self.device, self.seed = batch_size, device, seed
        self.count = len(paths)
        self.batches_per_epoch = -(-self.count // batch_size)
        self._requests: list[Request] = []
        decoder = Decoder(paths, preprocess.size, seed, augment, basis)
        self._loader = _loader(decoder, self._requests, workers, device)

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As Resident.train."""
        return self._read(epoch, order(self.seed, epoch, self.count)[start * self.batch_size :])

    def evaluate(self) -> Iterator[Batch]:
        return self._read(None, torch.arange(self.count))

    def _read(self, epoch: int | None, places: Tensor) -> Iterator[Batch]:
        chosen = [part for part in places.split(self.batch_size) if len(part)]
        self._requests[:] = [(epoch, part.tolist()) for part in chosen]
        for (images, changes), part in zip(_receive(self._loader), chosen, strict=True):
            changes = Changes(*(_send(change, self.device) for change in changes))
            images, labels = _send(images, self.device), _send(self.labels[part], self.device)
            yield self.preprocess.finish(images, changes), labels


Batches = Resident | Streaming


@dataclass(frozen=True, eq=False)
class Decoder:
    """decoder[epoch, places]: uint8 [B, 3, size, size] and the changes left for the device; or why there are none."""

    paths: Sequence[Path]
    size: int
    seed: int = 0
    augment: Augment = PLAIN
    basis: Tensor | None = None

    def __getitem__(self, request: Request) -> tuple[Tensor, Changes] | str:
        epoch, places = request
        try:
            images, changes = zip(*(self._one(epoch, place) for place in places), strict=True)
        except DataError as error:  # torch would make a traceback of several lines of it
            return str(error)
        return torch.cat(images), Changes(*map(_join, zip(*changes, strict=True)))

    def _one(self, epoch: int | None, place: int) -> tuple[Tensor, Changes]:
        image = read_image(self.paths[place])[None]
        if epoch is None or not any(self.augment):
            return fit(image, self.size), UNCHANGED
        draws = generator(self.seed, "augment", epoch, place)
        changes = draw(draws, 1, image.shape[-2], image.shape[-1], self.size, self.augment, self.basis)
        if changes.window is None:
            return fit(image, self.size), changes
        return cut(image, changes.window[0].tolist(), self.size), changes._replace(window=None)


def decode(paths: Sequence[Path], size: int, workers: int, batch_size: int = 64) -> Tensor:
    """uint8 [N, 3, size, size]: the middle square of each file. Raises DataError, ResourceError."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    parts = images.split(batch_size)
    requests: list[Request] = [(None, part.tolist()) for part in torch.arange(len(paths)).split(batch_size)]
    loader = _loader(Decoder(paths, size), requests, workers, torch.device("cpu"))
    for (decoded, _), part in zip(_receive(loader), parts, strict=True):
        part.copy_(decoded)
    return images


def _loader(decoder: Decoder, requests: list[Request], workers: int, device: torch.device) -> DataLoader:
    if workers:
        atexit.register(_end_workers)
    return DataLoader(
        decoder,  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        timeout=PATIENCE_SECONDS if workers else 0,
        worker_init_fn=_leave_signals_to_the_parent,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader seeds its workers from it; torch's own stays untouched
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach the workers too, but only the parent decides what they mean."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_workers() -> None:
    """Python ends daemons by SIGTERM when it exits, and would wait for ever for those that ignore it."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where torch reports a worker's end as a failure
    for process in active_children():
        if process.daemon:
            process.kill()


def _receive(loader: DataLoader) -> Iterator[tuple[Tensor, Changes]]:
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch
    except RuntimeError as error:  # torch's word for a worker that was killed or hangs
        if "DataLoader" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise ResourceError(f"data.workers={loader.num_workers}: {reason} (fewer workers need less memory)") from error


def _join(parts: Iterable[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _send(tensor: Any, device: torch.device) -> Any:
    """To CUDA from page-locked memory, so that the copy runs beside the network. None stays None."""
    if tensor is None or tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return True
    return images.nbytes < free / SHARE
