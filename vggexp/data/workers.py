"""Decodes and crops image files in worker processes, and survives the loss of one worker."""

import atexit
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vggexp.data.image_folder import read_image
from vggexp.data.transforms import (
    NO_AUGMENTATION,
    NO_CHANGES,
    Augment,
    AugmentParams,
    crop,
    resize_center_crop,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator

WORKER_TIMEOUT_SECONDS = 300  # a worker that sends nothing for so long is taken for hanging
EXIT_WAIT_SECONDS = 1  # between the first sign of a process's end and the end
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

# Loaders of killed workers. They are never freed, because freeing one would wait for locks that a
# killed worker still holds.
_LEAKED_LOADERS: list[Any] = []

DecodeRequest = tuple[int | None, list[int]]  # epoch, None for no augmentation; indices of images
DecodedImages = tuple[Tensor, AugmentParams]  # uint8 [B, 3, size, size], changes for the device


class PackedImages(NamedTuple):
    """Images of several shapes in one tensor.

    They are packed because each tensor takes a file descriptor on its way from a worker.
    """

    values: Tensor  # uint8, the values of one [3, height, width] image after the other
    shapes: list[tuple[int, int]]  # height and width


@dataclass(frozen=True)
class Failed:
    """Reply to a request whose images cannot be decoded.

    A worker sends a reply, because torch turns an exception into a traceback of several lines.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class ImageDecoder:
    """Decodes and crops the images of a request: `decoder[epoch, indices]`."""

    paths: Sequence[Path]
    size: int
    seed: int = 0
    augment: Augment = NO_AUGMENTATION
    basis: Tensor | None = None

    def __getitem__(self, request: DecodeRequest) -> DecodedImages | Failed:
        epoch, indices = request
        try:
            decoded = [self._decode(epoch, index) for index in indices]
        except DataError as error:
            return Failed(str(error))
        images, changes = zip(*decoded, strict=True)
        _, shifts, boxes = zip(*changes, strict=True)  # each window was applied here
        return torch.cat(images), AugmentParams(None, _concat(shifts), _concat(boxes))

    def _decode(self, epoch: int | None, index: int) -> DecodedImages:
        image = read_image(self.paths[index])[None]
        if epoch is None or not any(self.augment):
            return resize_center_crop(image, self.size), NO_CHANGES
        height, width = image.shape[-2:]
        changes = sample_augmentation(
            generator(self.seed, "augment", epoch, index),
            1,
            height,
            width,
            self.size,
            self.augment,
            self.basis,
        )
        if changes.window is None:
            return resize_center_crop(image, self.size), changes
        (window,) = changes.window.crops()
        return crop(image, window, self.size), changes._replace(window=None)


def _concat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


@dataclass(frozen=True, eq=False)
class FullImageDecoder:
    """Decodes the images of a request uncropped, once for each size of the shorter side."""

    paths: Sequence[Path]
    sizes: Sequence[int]

    def __getitem__(self, request: DecodeRequest) -> list[PackedImages] | Failed:
        _, indices = request
        scales: list[list[Tensor]] = [[] for _ in self.sizes]
        try:
            for index in indices:  # only one image of full size is in memory
                image = read_image(self.paths[index])[None]
                for resized, size in zip(scales, self.sizes, strict=True):
                    resized.append(resize_shorter_side(image, size))
        except DataError as error:
            return Failed(str(error))
        return [_pack(resized) for resized in scales]


def _pack(images: Sequence[Tensor]) -> PackedImages:
    values = torch.cat([image.flatten() for image in images])
    shapes = [(image.shape[2], image.shape[3]) for image in images]
    return PackedImages(values, shapes)


class WorkerKilledError(Exception):
    """A worker process ended that should have lived on."""


class WorkerWatch:
    """Raises WorkerKilledError at once if a worker ends while a batch is awaited.

    torch installs a handler of SIGCHLD, which raises an error anywhere in the program. This class
    replaces torch's handler: a worker's end is an error only inside the block of `watch`.

    One race remains. A worker's end also breaks the pipe to the worker, and torch may notice that
    first. On the way to its own error, torch opens temporary files, to find out whether the file
    descriptors have run out. If SIGCHLD arrives just then, raising would interrupt `tempfile` in
    the middle of creating a file. So the handler looks for `tempfile` on the stack, and leaves the
    error to torch in that case. `DecoderPool` translates torch's error.
    """

    def __init__(self) -> None:
        self.processes: list[Any] = []  # the workers; empty until they are started

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watches the workers in the block. Only the main thread can handle signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGCHLD, self._on_child_exit)
        try:
            if self._is_worker_dead():
                raise WorkerKilledError
            yield
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _on_child_exit(self, signum: int, frame: FrameType | None) -> None:
        if self._is_worker_dead() and not _is_in_tempfile(frame):
            raise WorkerKilledError

    def _is_worker_dead(self) -> bool:
        return not all(process.is_alive() for process in self.processes)


def _is_in_tempfile(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == tempfile.__file__:
            return True
        frame = frame.f_back
    return False


class DecoderPool:
    """Runs a decoder in worker processes, which live on between the calls.

    If a worker is killed, all workers are replaced once, and the batches that have not arrived
    are decoded again. They are the same, because the draws belong to the images. A second killed
    worker raises ResourceError, and so does a worker that hangs.

    Args:
        workers: number of processes; 0: this process decodes.
        pinned: copies the batches to page-locked memory.
        warn: prints a line about workers that were replaced.
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
        self._watch = WorkerWatch()
        self._create_loader()

    def decode(self, requests: Sequence[DecodeRequest]) -> Iterator[Any]:
        """Yields the decoder's result for each request, in the order of the requests.

        Raises:
            DataError: an image cannot be decoded.
            ResourceError: a worker hangs, or a worker was killed for the second time.
        """
        remaining = list(requests)
        while remaining:
            try:
                for batch in self._load(remaining):
                    remaining.pop(0)
                    yield batch
            except WorkerKilledError:
                self._replace_workers()

    def _create_loader(self) -> None:
        if self.workers:
            atexit.register(end_workers)
            # Created by this process, the folder is shared by the workers. A folder that a worker
            # created would stay behind if the worker is killed.
            get_temp_dir()
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
            generator=torch.Generator(),  # seeds the workers; torch's own stays untouched
        )

    def _load(self, requests: Sequence[DecodeRequest]) -> Iterator[Any]:
        """Yields the results of the requests, in one pass of the loader."""
        self._requests[:] = requests
        children = set(active_children())
        with self._worker_errors():
            batches = iter(self._loader)  # waits for workers that live already
            if not self._watch.processes:
                self._watch.processes = list(set(active_children()) - children)
            if len(self._watch.processes) < self.workers:
                raise WorkerKilledError  # already dead: the loader would wait for it
        while True:
            with self._worker_errors():
                batch = next(batches, None)
            match batch:
                case None:
                    return
                case Failed(reason):
                    # Now, because Python waits for the workers while it cleans up after an error.
                    self._restart_workers()
                    raise DataError(reason)
            yield batch

    @contextlib.contextmanager
    def _worker_errors(self) -> Iterator[None]:
        """Raises WorkerKilledError or ResourceError for whatever a dead or hanging worker causes.

        torch and the pipes raise several errors when a worker is killed, depending on what the
        worker was doing.
        """
        watch = self._watch.watch() if self.workers else contextlib.nullcontext()
        try:
            with watch:
                yield
        except (RuntimeError, OSError, EOFError) as error:
            processes = self._watch.processes or active_children()
            sentinels = [process.sentinel for process in processes]
            if wait(sentinels, timeout=EXIT_WAIT_SECONDS):
                raise WorkerKilledError from error
            if not isinstance(error, RuntimeError) or "DataLoader timed out" not in str(error):
                raise
            raise ResourceError(
                f"data.workers={self.workers}: no image came for {WORKER_TIMEOUT_SECONDS} s; "
                "is the disk still there?"
            ) from error

    def _replace_workers(self) -> None:
        # Also before the error: a caller that catches the error, as the drawing of test images
        # does, goes on with new workers.
        self._restart_workers()
        if self.replaced:
            raise ResourceError(
                f"data.workers={self.workers}: a worker process was killed for the second time "
                "(fewer workers need less memory)"
            )
        self.replaced = True
        self.warn(
            "warning: a worker process was killed; the workers were replaced and nothing is lost"
        )

    def _restart_workers(self) -> None:
        for process in self._watch.processes:
            process.kill()
            process.join()
        self._watch.processes = []
        _LEAKED_LOADERS.append(self._loader)
        self._create_loader()


def decode_images(
    paths: Sequence[Path],
    size: int,
    workers: int,
    batch_size: int = 64,
) -> Tensor:
    """Decodes the square in the center of each file.

    Returns:
        uint8 [N, 3, size, size].

    Raises:
        DataError: an image cannot be decoded.
        ResourceError: as DecoderPool.decode.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    if not paths:
        return images
    indices = torch.arange(len(paths)).split(batch_size)
    requests: list[DecodeRequest] = [(None, part.tolist()) for part in indices]
    pool = DecoderPool(ImageDecoder(paths, size), workers)
    decoded = pool.decode(requests)
    for part, (values, _) in zip(images.split(batch_size), decoded, strict=True):
        part.copy_(values)
    return images


def _identity(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    """Ignores the stop signals in a worker, and silences its uncaught exceptions.

    Ctrl-C and a cluster's SIGTERM reach the workers too, but only the parent decides what they
    mean. Errors of the decoder are sent to the parent. Only a thread that finds the other end of
    its pipe closed would print a traceback.
    """
    sys.excepthook = lambda *_: None
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_workers() -> None:
    """Kills the workers at exit.

    Python ends daemons by SIGTERM when it exits. It would wait forever for workers that ignore
    SIGTERM.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports an end as a failure
    for process in active_children():
        if process.daemon:
            process.kill()
