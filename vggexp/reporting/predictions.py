"""The predictions of a run on its test set, read without trusting the file: confusions and the worst mistakes."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggexp.data.catalogue import FACTS, folder_classes
from vggexp.errors import CheckpointError, DataError

FILE = "predictions.npz"
MOST_BYTES = 1 << 28  # of one array: 50,000 images of 1,000 classes, and a quarter more

Array = NDArray[Any]


class Predictions(NamedTuple):
    scores: Array  # [N, K], probabilities
    labels: Array  # [N]

    @property
    def predicted(self) -> Array:
        return np.asarray(self.scores.argmax(1))


class Mistake(NamedTuple):
    image: int  # its place in the test set, from 0
    label: int
    predicted: int
    score: float  # of the predicted class
    label_score: float


def read_predictions(folder: Path) -> Predictions:
    """Raises CheckpointError where the file is missing, too large, or not what a run writes."""
    path = folder / FILE
    try:
        with zipfile.ZipFile(path) as archive:
            found = Predictions(_array(archive, "scores.npy"), _array(archive, "labels.npy"))
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not _consistent(*found):
        raise CheckpointError(f"{path}: not the scores and labels of a test set")
    return found


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    """numpy would make room for whatever shape the header claims; here the bytes are counted first."""
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise ValueError(f"{name}: more than {MOST_BYTES >> 20} MiB")
    file = io.BytesIO(archive.read(name))
    np.lib.format.read_magic(file)
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(file.read(), kind).reshape(shape, order="F" if fortran else "C")


def _consistent(scores: Array, labels: Array) -> bool:
    if scores.dtype.kind != "f" or labels.dtype.kind not in "iu" or scores.ndim != 2 or labels.ndim != 1:
        return False
    return len(scores) == len(labels) > 0 and 0 <= labels.min() and labels.max() < scores.shape[1]


def confusion(predictions: Predictions) -> Array:
    """[K, K] counts by true class (rows) and predicted class (columns)."""
    classes = predictions.scores.shape[1]
    places = predictions.labels.astype(np.int64) * classes + predictions.predicted
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def worst_mistakes(predictions: Predictions, count: int = 12) -> list[Mistake]:
    """The wrong answers of the greatest confidence."""
    scores, labels, predicted = *predictions, predictions.predicted
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-scores[wrong, predicted[wrong]], kind="stable")][:count]
    return [
        Mistake(int(i), int(labels[i]), int(predicted[i]), float(scores[i, predicted[i]]), float(scores[i, labels[i]]))
        for i in worst
    ]


def class_names(config: dict[str, Any], count: int) -> tuple[str, ...]:
    """Of the data set or its folder; numbers where neither tells `count` names."""
    names: tuple[str, ...] = ()
    data, root = config.get("data.name"), config.get("data.root")
    if isinstance(data, str) and data in FACTS:
        names = FACTS[data].classes
    elif data == "image_folder" and isinstance(root, str):
        try:
            names = folder_classes(Path(root))
        except (DataError, ValueError):  # moved, or never on this machine
            names = ()
    return names if len(names) == count else tuple(map(str, range(count)))
