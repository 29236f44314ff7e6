"""Reads predictions.npz of a run: the class probabilities of every test image. Needs no torch."""

import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.lib.format import read_array
from numpy.typing import NDArray

from vggexp.errors import CheckpointError

Array = NDArray[Any]

PREDICTIONS = "predictions.npz"
MAX_ARRAY_BYTES = 1 << 31  # bytes of one unpacked array: half a million images of 1000 classes
DAMAGE_ERRORS = (  # what zipfile and numpy raise on a damaged file
    OSError,
    ValueError,
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


def read(folder: Path, max_bytes: int = MAX_ARRAY_BYTES) -> Predictions:
    """Reads predictions.npz of the run in `folder`. Nothing in the file is executed.

    Args:
        max_bytes: largest size of one unpacked array.

    Raises:
        CheckpointError: the file is missing, damaged, or not what a run writes.
    """
    path = folder / PREDICTIONS
    try:
        with zipfile.ZipFile(path) as archive:
            probs = _read_array(archive, "scores", max_bytes)
            labels = _read_array(archive, "labels", max_bytes)
    except DAMAGE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if problem := _array_problem(probs, labels):
        raise CheckpointError(f"{path}: not the predictions of a run: {problem}")
    return Predictions(probs, labels)


def _read_array(
    archive: zipfile.ZipFile,
    name: str,
    max_bytes: int,
) -> Array:
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > max_bytes:
        raise ValueError(f"{name} takes {entry.file_size} bytes, more than {max_bytes}")
    with archive.open(entry) as file:
        return read_array(file, allow_pickle=False)


def _array_problem(scores: Array, labels: Array) -> str | None:
    """Returns why the two arrays cannot come from a run."""
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels) or not scores.size:
        shapes = f"scores {list(scores.shape)} and labels {list(labels.shape)}"
        return f"{shapes}, expected [N, K] and [N]"
    if scores.dtype.kind != "f" or labels.dtype.kind not in "iu":
        dtypes = f"scores of {scores.dtype} and labels of {labels.dtype}"
        return f"{dtypes}, expected floats and integers"
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        return f"labels {labels.min()}..{labels.max()}, classes are 0..{scores.shape[1] - 1}"
    if not numpy.isfinite(scores).all():
        return "scores that are not finite"
    return None


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
