"""Reads predictions.npz of a run: the class probabilities of every test image. Needs no torch."""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from vggexp.data.catalog import DATASETS
from vggexp.formatting import one_line
from vggexp.runs import schema
from vggexp.runs.directory import PREDICTIONS
from vggexp.system.files import atomic_write, open_regular

Array = NDArray[Any]

MAX_ARRAY_BYTES = 1 << 31  # bytes of one unpacked array: half a million images of 1000 classes
DAMAGE_ERRORS = (  # what zipfile and numpy raise on a damaged file
    ValueError,
    OverflowError,
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Predictions(NamedTuple):
    """Class probabilities of the test images, and the true classes.

    The file calls the two arrays `scores` and `labels`.
    """

    probs: Array  # floats [N, K]
    labels: Array  # integers [N], 0..K-1

    @property
    def predicted(self) -> Array:
        """Returns integers [N]: the most probable class of each image."""
        return self.probs.argmax(1)

    @property
    def correct(self) -> Array:
        """Returns bool [N]: true if the most probable class is the true one."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified test image."""

    index: int  # of the image in the test set, from 0
    label: int
    predicted: int
    prob: float  # of the predicted class
    label_prob: float  # of the true class


class _Entry(NamedTuple):
    """An array of the file before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    is_fortran: bool


def read(
    folder: Path, config: Mapping[str, Any] = {}, max_bytes: int = MAX_ARRAY_BYTES
) -> Predictions:
    """Reads predictions.npz of the run in `folder`. Nothing in the file is executed.

    Args:
        config: the run's configuration with flat keys; bounds the shapes.
        max_bytes: largest size of one unpacked array.

    Raises:
        CheckpointError: the file is missing, damaged, or not what a run writes.
        ResourceError: a permission or a resource is missing.
    """
    path = folder / PREDICTIONS
    try:
        with open(path, "rb", opener=open_regular) as file, zipfile.ZipFile(file) as archive:
            probs = _read_array(archive, "scores", config, max_bytes)
            labels = _read_array(archive, "labels", config, max_bytes)
    except OSError as error:
        raise schema.unreadable(path, error) from error
    except DAMAGE_ERRORS as error:
        raise schema.damaged(path, one_line(error)) from error
    if problem := _array_problem(probs, labels):
        raise schema.damaged(path, f"not the predictions of a run: {problem}")
    return Predictions(probs, labels)


def write(folder: Path, probs: Array, labels: Array) -> None:
    """Writes predictions.npz durably.

    Args:
        probs: floats [N, K].
        labels: integers [N], 0..K-1.
    """
    content = io.BytesIO()
    numpy.savez_compressed(content, scores=probs, labels=labels)
    atomic_write(folder / PREDICTIONS, content.getvalue())


def _read_array(
    archive: zipfile.ZipFile, name: str, config: Mapping[str, Any], max_bytes: int
) -> Array:
    """Reads an array. Checks what its header declares before any memory is reserved for it."""
    with archive.open(f"{name}.npy") as file:
        entry = _read_header(name, file)
        if problem := _shape_problem(entry, config):
            raise ValueError(problem)
        count = math.prod(entry.shape)
        array_bytes = count * entry.dtype.itemsize
        if array_bytes > max_bytes:
            raise ValueError(f"{name} takes {array_bytes} bytes, more than {max_bytes}")
        content = file.read(array_bytes)
    if len(content) != array_bytes:
        raise ValueError(f"{name} has {len(content)} bytes, its header says {array_bytes}")
    array = numpy.frombuffer(bytearray(content), entry.dtype)  # writable, as torch wants it
    return array.reshape(entry.shape, order="F" if entry.is_fortran else "C")


def _read_header(name: str, file: IO[bytes]) -> _Entry:
    version = npy_format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{name} has version {version} of NumPy's format")
    shape, is_fortran, dtype = npy_format.read_array_header_1_0(file)
    return _Entry(name, shape, dtype, is_fortran)


def _shape_problem(entry: _Entry, config: Mapping[str, Any]) -> str:
    """Returns why a run of this configuration cannot have written an array; empty if it can."""
    is_scores = entry.name == "scores"
    expected = "floats [N, K]" if is_scores else "integers [N]"
    kinds = "f" if is_scores else "iu"
    dimensions = 2 if is_scores else 1
    shape = list(entry.shape)
    if entry.dtype.kind not in kinds or len(shape) != dimensions or min(shape) < 1:
        return f"{entry.name} are {entry.dtype} {shape}, expected {expected}"
    info = DATASETS.get(str(config.get("data.name")))
    images = info.test_images if info else config.get("data.images")
    classes = len(info.classes) if info else config.get("data.classes")
    if isinstance(images, int) and shape[0] > images:
        return f"{entry.name} are of {shape[0]} images, the data has {images}"
    if is_scores and isinstance(classes, int) and shape[1] != classes:
        return f"{entry.name} are of {shape[1]} classes, the data has {classes}"
    return ""


def _array_problem(scores: Array, labels: Array) -> str:
    """Returns why two arrays do not belong together; empty if they do."""
    if len(scores) != len(labels):
        return f"scores of {len(scores)} images and labels of {len(labels)}"
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        return f"labels {labels.min()}..{labels.max()}, classes are 0..{scores.shape[1] - 1}"
    if not numpy.isfinite(scores).all():
        return "scores that are not finite"
    return ""


def worst_mistakes(predictions: Predictions, count: int = 12) -> list[Mistake]:
    """Returns the `count` wrong predictions of the highest probability, highest first."""
    predicted = predictions.predicted
    wrong = numpy.flatnonzero(predicted != predictions.labels)
    confidence = predictions.probs[wrong, predicted[wrong]]
    worst = wrong[numpy.argsort(-confidence, kind="stable")][:count]
    mistakes = []
    for index in worst.tolist():
        probs = predictions.probs[index]
        label = int(predictions.labels[index])
        guess = int(predicted[index])
        mistakes.append(Mistake(index, label, guess, float(probs[guess]), float(probs[label])))
    return mistakes
