"""What a run predicts of its test set, told: confusions, the worst mistakes and the names of the classes."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggexp.data.catalogue import FACTS, folder_classes
from vggexp.errors import DataError
from vggexp.predictions import Predictions

Array = NDArray[Any]


class Mistake(NamedTuple):
    image: int  # its place in the test set, from 0
    label: int
    predicted: int
    score: float  # of the predicted class
    label_score: float


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
