"""Decodes and crops image files in worker processes, and survives the loss of one worker.

Requests and batches go through a pipe of each worker. torch's DataLoader would send a batch
through shared memory, of which a container has 64 MB by default, and through a socket, whose path
a long TMPDIR makes too long.
"""

import atexit
import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, get_all_start_methods, get_context, process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from traceback import format_exc
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.image_file import read_image
from vggexp.data.transforms import (
    NO_CHANGES,
    AugmentParams,
    crop,
    resize_center_crop,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator
from vggexp.system.processes import hidden_main_module
from vggexp.system.signals import STOP_SIGNALS, interruptible

WORKER_TIMEOUT_SECONDS = 300  # a worker that sends nothing for so long is taken for hanging
EXIT_WAIT_SECONDS = 1  # for the end of a killed worker, which a dead disk may hold back

DecodeRequest = tuple[int | None, list[int]]  # epoch, None for no augmentation; indices of images
DecodedImages = tuple[Tensor, AugmentParams]  # uint8 [B, 3, size, size], changes for the device


class PackedImages(NamedTuple):
    """Images of several shapes in one tensor."""

    values: Tensor  # uint8, the values of one [3, height, width] image after the other
    shapes: list[tuple[int, int]]  # height and width


@dataclass(frozen=True, eq=False)
class ImageDecoder:
    """Decodes and crops the images of a request: `decoder[epoch, indices]`."""

    paths: Sequence[Path]
    size: int
    seed: int = 0
    augment: Augment = NO_AUGMENTATION
    basis: Tensor | None = None

    def __getitem__(self, request: DecodeRequest) -> DecodedImages:
        epoch, indices = request
        decoded = [self._decode(epoch, index) for index in indices]
        images, changes = zip(*decoded, strict=True)
        _, shifts, boxes = zip(*changes, strict=True)  # each window was applied here
        return torch.cat(images), AugmentParams(None, _concat(shifts), _concat(boxes))

    def _decode(self, epoch: int | None, index: int) -> DecodedImages:
        image = read_image(self.paths[index])[None]
        augment = NO_AUGMENTATION if epoch is None else self.augment.in_epoch(epoch)
        if not any(augment):
            return resize_center_crop(image, self.size), NO_CHANGES
        height, width = image.shape[-2:]
        changes = sample_augmentation(
            generator(self.seed, "augment", epoch, index),
            1,
            height,
            width,
            self.size,
            augment,
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

    def __getitem__(self, request: DecodeRequest) -> list[PackedImages]:
        _, indices = request
        scales: list[list[Tensor]] = [[] for _ in self.sizes]
        for index in indices:  # only one image of full size is in memory
            image = read_image(self.paths[index])[None]
            for resized, size in zip(scales, self.sizes, strict=True):
                resized.append(resize_shorter_side(image, size))
        return [_pack(resized) for resized in scales]


def _pack(images: Sequence[Tensor]) -> PackedImages:
    values = torch.cat([image.flatten() for image in images])
    shapes = [(image.shape[2], image.shape[3]) for image in images]
    return PackedImages(values, shapes)


Decoder = ImageDecoder | FullImageDecoder


class WorkerKilledError(Exception):
    """A worker process has ended."""


# The parent's ends of the pipes.
_PIPES: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_pipes() -> None:
    """Closes the inherited ends in a forked process, so that a worker notices its parent's end."""
    for pipe in list(_PIPES):
        pipe.close()


os.register_at_fork(after_in_child=_close_pipes)


class Worker:
    """A process that answers one request at a time."""

    def __init__(self, decoder: Decoder):
        self._pipe, end = Pipe()
        _PIPES.add(self._pipe)
        # The platform's own method, which comes first. joblib sets another one in its processes,
        # whose children cannot start a process by it.
        context: Any = get_context(get_all_start_methods()[0])
        self.process = context.Process(target=_serve, args=(decoder, end), daemon=True)
        with hidden_main_module():
            self.process.start()
        end.close()
        self.request: DecodeRequest | None = None  # not answered yet

    def send(self, request: DecodeRequest) -> None:
        """Sends a request; the worker must have answered the one before."""
        self.request = request
        with contextlib.suppress(OSError):  # `receive` reports a worker that has ended
            self._pipe.send(request)

    def receive(self) -> Any:
        """Waits for the answer to the request.

        Raises:
            WorkerKilledError: the process has ended.
            TimeoutError: no answer came for WORKER_TIMEOUT_SECONDS.
            Exception: what the decoder raised, such as DataError.
        """
        ready = wait([self._pipe, self.process.sentinel], WORKER_TIMEOUT_SECONDS)
        if not ready:
            raise TimeoutError
        try:
            if self._pipe not in ready:
                raise EOFError
            answer = self._pipe.recv()
        except (OSError, EOFError) as error:
            raise WorkerKilledError from error
        self.request = None
        if isinstance(answer, Exception):
            raise answer
        arrays: Any = tree_map_only(numpy.ndarray, torch.from_numpy, answer)
        return arrays


def _serve(decoder: Decoder, pipe: Connection) -> None:
    """Answers requests until the other end of the pipe is closed.

    Ctrl-C and a cluster's SIGTERM reach the workers too, but only the parent decides what they
    mean.
    """
    for name in STOP_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = pipe.recv()
            answer: Any
            try:
                # As arrays, because torch sends its own tensors through shared memory.
                answer = tree_map_only(Tensor, Tensor.numpy, decoder[request])
            except Exception as error:
                error.add_note(format_exc())
                answer = error
            pipe.send(answer)


def print_warning(line: str) -> None:
    """Prints on stderr, because stdout may be the JSON of a command."""
    print(line, file=sys.stderr)


class DecoderPool:
    """Runs a decoder in worker processes, which live on between the calls.

    A worker that is killed is replaced once, and the batch that it had is decoded again. The batch
    is the same, because the draws belong to the images. A second killed worker raises
    ResourceError, and so does a worker that hangs.

    Args:
        workers: number of processes; 0: this process decodes.
        warn: prints a line about a worker that was replaced.
    """

    def __init__(
        self,
        decoder: Decoder,
        workers: int,
        warn: Callable[[str], None] = print_warning,
    ):
        self.decoder = decoder
        self.workers = workers
        self.warn = warn
        self.replaced = False
        self._running: list[Worker] = []  # started by the first request

    def decode(self, requests: Sequence[DecodeRequest]) -> Iterator[Any]:
        """Yields the decoder's result for each request, in the order of the requests.

        Raises:
            DataError: an image cannot be decoded.
            ResourceError: a worker hangs, or a worker was killed for the second time.
            WaitStoppedError: a stop signal has arrived, and no image came.
        """
        if not self.workers:
            for request in requests:
                with interruptible("while an image was read"):
                    batch = self.decoder[request]
                yield batch
            return
        self._get_ready()
        waiting = iter(requests)
        for worker, request in zip(self._running, waiting, strict=False):
            worker.send(request)
        for index in range(len(requests)):
            position = index % self.workers
            batch = self._receive(position)
            following = next(waiting, None)
            if following is not None:
                self._running[position].send(following)
            yield batch

    def _get_ready(self) -> None:
        """Drops the answers to requests of an earlier call, then starts workers if none run."""
        with contextlib.suppress(DataError):  # which ends the workers
            for position, worker in enumerate(self._running):
                if worker.request is not None:
                    self._receive(position)
        if not self._running:
            atexit.register(end_workers)
            self._running = [Worker(self.decoder) for _ in range(self.workers)]

    def _receive(self, position: int) -> Any:
        """Waits for a batch; replaces the worker if it was killed."""
        while True:
            try:
                with interruptible("while an image was awaited"):
                    return self._running[position].receive()
            except WorkerKilledError:
                self._replace(position)
            except TimeoutError as error:
                self._drop_workers()
                raise ResourceError(
                    f"data.workers={self.workers}: no image came for {WORKER_TIMEOUT_SECONDS} s; "
                    "is the disk still there?"
                ) from error
            except BaseException:
                self._drop_workers()
                raise

    def _replace(self, position: int) -> None:
        if self.replaced:
            self._drop_workers()
            raise ResourceError(
                f"data.workers={self.workers}: a worker process was killed for the second time "
                "(fewer workers need less memory)"
            )
        self.replaced = True
        request = self._running[position].request
        self._running[position] = Worker(self.decoder)
        if request is not None:
            self._running[position].send(request)
        self.warn("warning: a worker process was killed; it was replaced and nothing is lost")

    def _drop_workers(self) -> None:
        """Ends the workers after an error; an answer may be half read. The next call starts others.

        A caller may go on after an error, as the drawing of test images does.
        """
        for worker in self._running:
            worker.process.kill()
        self._running = []


def decode_images(
    paths: Sequence[Path],
    size: int,
    workers: int,
    warn: Callable[[str], None] = print_warning,
    batch_size: int = 64,
) -> Tensor:
    """Decodes the square in the center of each file.

    Args:
        warn: as in DecoderPool.

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
    pool = DecoderPool(ImageDecoder(paths, size), workers, warn)
    decoded = pool.decode(requests)
    for part, (values, _) in zip(images.split(batch_size), decoded, strict=True):
        part.copy_(values)
    return images


def end_workers() -> None:
    """Kills the workers at exit.

    Python would send SIGTERM, which the workers ignore, and wait for each worker without end.
    """
    children = [child for child in process.active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join(EXIT_WAIT_SECONDS)
        process._children.discard(child)  # type: ignore[attr-defined]  # a dead disk holds it back
