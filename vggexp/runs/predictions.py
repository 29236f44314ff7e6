"""predictions.npz of a run read back: what its network says of each test image. Needs no torch."""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.lib.format import read_array

from vggexp.errors import CheckpointError

PREDICTIONS = "predictions.npz"
MOST_BYTES = 1 << 31  # of one array, unpacked: half a million images of a thousand classes
DAMAGE = (
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
    scores: Any  # floats [N, K], the probability of each class
    labels: Any  # integers [N], 0..K-1

    @property
    def predicted(self) -> Any:
        """integers [N]: the class of the highest score."""
        return self.scores.argmax(1)

    @property
    def right(self) -> Any:
        """bool [N]: which images get the highest score for their own class."""
        return self.predicted == self.labels


def read(folder: Path) -> Predictions:
    """Raises CheckpointError where the file is missing, damaged or not what a run writes. Nothing is executed."""
    path = folder / PREDICTIONS
    try:
        with zipfile.ZipFile(path) as archive:
            kept = Predictions(*(_array(archive, name) for name in Predictions._fields))
    except DAMAGE as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read: {told}") from error
    if wrong := _wrong(*kept):
        raise CheckpointError(f"{path}: not the predictions of a run: {wrong}")
    return kept


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > MOST_BYTES:
        raise ValueError(f"{name} takes {entry.file_size} bytes, more than {MOST_BYTES}")
    with archive.open(entry) as file:
        return read_array(file, allow_pickle=False)


def _wrong(scores: Any, labels: Any) -> str:
    """What is, or nothing."""
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels) or not scores.size:
        return f"scores {list(scores.shape)} and labels {list(labels.shape)}, wanted [N, K] and [N]"
    if scores.dtype.kind != "f" or labels.dtype.kind not in "iu":
        return f"scores of {scores.dtype} and labels of {labels.dtype}, wanted floats and integers"
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        return f"labels {labels.min()}..{labels.max()}, classes are 0..{scores.shape[1] - 1}"
    return "" if numpy.isfinite(scores).all() else "scores that are not finite"
