"""Pictures in files, decoded and cut by worker processes, one of which may be killed."""

import atexit
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vggexp.data.image_folder import read_image
from vggexp.data.transforms import (
    PLAIN,
    UNCHANGED,
    Augment,
    AugmentParams,
    crop,
    resize_center_crop,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator

WORKER_TIMEOUT_SECONDS = 300  # a worker silent for so long hangs
_LEAKED_LOADERS: list[
    Any
] = []  # loaders of killed workers: their end would wait for locks that the killed ones held
EXIT_WAIT_SECONDS = 1  # from the first sign of a process's end to its end
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

DecodeRequest = tuple[
    int | None, list[int]
]  # epoch, None for plain pictures; places of the pictures


@dataclass(frozen=True, eq=False)
class ImageDecoder:
    """decoder[epoch, places]: uint8 [B, 3, size, size] and the changes left for the device; or why there are none."""

    paths: Sequence[Path]
    size: int
    seed: int = 0
    augment: Augment = PLAIN
    basis: Tensor | None = None

    def __getitem__(self, request: DecodeRequest) -> tuple[Tensor, AugmentParams] | str:
        epoch, places = request
        try:
            images, changes = zip(*(self._one(epoch, place) for place in places), strict=True)
        except DataError as error:  # torch would make a traceback of several lines of it
            return str(error)
        return torch.cat(images), AugmentParams(*map(_join, zip(*changes, strict=True)))

    def _one(self, epoch: int | None, place: int) -> tuple[Tensor, AugmentParams]:
        image = read_image(self.paths[place])[None]
        if epoch is None or not any(self.augment):
            return resize_center_crop(image, self.size), UNCHANGED
        draws = generator(self.seed, "augment", epoch, place)
        changes = sample_augmentation(
            draws, 1, image.shape[-2], image.shape[-1], self.size, self.augment, self.basis
        )
        if changes.window is None:
            return resize_center_crop(image, self.size), changes
        return crop(image, changes.window[0].tolist(), self.size), changes._replace(window=None)


PackedImages = tuple[
    Tensor, list[tuple[int, int]]
]  # the bytes of [3, height, width] pictures in a row; their shapes


@dataclass(frozen=True, eq=False)
class FullImageDecoder:
    """decoder[_, places]: the pictures uncut, once for each of `sides`, which their shorter sides are scaled to.

    Packed, since every tensor takes a file descriptor on its way from a worker. Or why there are none.
    """

    paths: Sequence[Path]
    sides: Sequence[int]

    def __getitem__(self, request: DecodeRequest) -> list[PackedImages] | str:
        try:
            pictures = [self._one(place) for place in request[1]]
        except DataError as error:
            return str(error)
        return [
            (
                torch.cat([image.flatten() for image in images]),
                [tuple(image.shape[2:]) for image in images],
            )
            for images in zip(*pictures, strict=True)
        ]

    def _one(self, place: int) -> list[Tensor]:
        image = read_image(self.paths[place])[None]
        return [resize_shorter_side(image, side) for side in self.sides]


class WorkerKilledError(Exception):
    """A worker process has ended that should not have."""


class DecoderPool:
    """A decoder in `workers` processes (0: in this one) that live on between the calls.

    A killed worker is survived once: all are replaced, and the batches that have not come are decoded again, the same
    because the draws belong to the pictures. The second time it is raised as ResourceError, as is a worker that hangs.
    """

    def __init__(
        self,
        decoder: ImageDecoder | FullImageDecoder,
        workers: int,
        pinned: bool = False,
        warn: Callable[[str], None] = print,
    ):
        self.decoder = decoder
        self.workers = workers
        self.pinned = pinned
        self.warn = warn
        self.replaced = False
        self._requests: list[DecodeRequest] = []
        self._processes: list[Any] = []
        self._start()

    def decode(self, requests: Sequence[DecodeRequest]) -> Iterator[Any]:
        """What the decoder gives for each request, in their order."""
        left = list(requests)
        while left:
            try:
                for batch in self._received(left):
                    left.pop(0)
                    yield batch
            except WorkerKilledError:
                self._replace()

    def _start(self) -> None:
        if self.workers:
            atexit.register(end_workers)
            get_temp_dir()  # made by this process, the workers share it, and none is left of one that was killed
        self._loader: DataLoader[Any] = DataLoader(
            self.decoder,  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._requests,
            collate_fn=_identity,
            num_workers=self.workers,
            pin_memory=self.pinned,
            timeout=WORKER_TIMEOUT_SECONDS if self.workers else 0,
            worker_init_fn=_init_worker,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # the loader seeds its workers from it; torch's own stays untouched
        )

    def _received(self, requests: Sequence[DecodeRequest]) -> Iterator[Any]:
        self._requests[:] = requests
        others = set(active_children())
        with self._told(), self._watched():
            batches = iter(self._loader)  # waits for the workers where they live already
            self._processes = self._processes or list(set(active_children()) - others)
            if len(self._processes) < self.workers:  # one has gone already, and would be waited for
                raise WorkerKilledError
        while True:
            with self._told(), self._watched():
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, str):
                self._end()  # now: while Python clears up after an error they would be waited for
                raise DataError(batch)
            yield batch

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """While a batch is awaited, and only then, a worker's end is an error: torch's handler raises it anywhere."""
        if threading.current_thread() is not threading.main_thread() or not self.workers:
            yield
            return
        signal.signal(signal.SIGCHLD, self._ended)
        try:
            self._ended()
            yield
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _ended(self, number: int = 0, frame: FrameType | None = None) -> None:
        if all(process.is_alive() for process in self._processes):
            return
        while frame is not None:
            if frame.f_code.co_filename == tempfile.__file__:
                return  # torch tries its descriptors there, on its way to an error that `_told` will see
            frame = frame.f_back
        raise WorkerKilledError

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What torch and the pipes raise when a worker is killed, in whatever it was doing, or hangs."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            if wait(
                [process.sentinel for process in self._processes or active_children()],
                timeout=EXIT_WAIT_SECONDS,
            ):
                raise WorkerKilledError from error
            if not isinstance(error, RuntimeError) or "DataLoader timed out" not in str(error):
                raise
            told = f"data.workers={self.workers}: no picture came for {WORKER_TIMEOUT_SECONDS} s; is the disk still there?"
            raise ResourceError(told) from error

    def _replace(self) -> None:
        self._end()  # also before the error: who lets it pass, as pictures do, goes on with new workers
        if self.replaced:
            raise ResourceError(
                f"data.workers={self.workers}: a worker process was killed for the second time (fewer workers need "
                "less memory)"
            )
        self.replaced = True
        self.warn(
            "warning: a worker process was killed; the workers were replaced and nothing is lost"
        )

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []
        _LEAKED_LOADERS.append(self._loader)
        self._start()


def decode_images(paths: Sequence[Path], size: int, workers: int, batch_size: int = 64) -> Tensor:
    """uint8 [N, 3, size, size]: the middle square of each file. Raises DataError, ResourceError."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    requests: list[DecodeRequest] = [
        (None, part.tolist()) for part in torch.arange(len(paths)).split(batch_size)
    ]
    if not paths:
        return images
    decoded = DecoderPool(ImageDecoder(paths, size), workers).decode(requests)
    for (pictures, _), part in zip(decoded, images.split(batch_size), strict=True):
        part.copy_(pictures)
    return images


def _identity(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach the workers too, but only the parent decides what they mean.

    What fails here is sent to the parent; only a thread that finds the other end gone would print its traceback.
    """
    sys.excepthook = lambda *_: None
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_workers() -> None:
    """Python ends daemons by SIGTERM when it exits, and would wait for ever for those that ignore it."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # where torch reports a worker's end as a failure
    for process in active_children():
        if process.daemon:
            process.kill()


def _join(parts: Iterable[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
