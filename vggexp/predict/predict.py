"""Classifies image files with a run or an exported file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.data.image_file import read_image
from vggexp.data.transforms import resize_center_crop
from vggexp.errors import ConfigError, DataError, DivergedError, ResourceError, VggexpError
from vggexp.export.exported_model import ExportedModel, open_model
from vggexp.system import memory

BATCH_SIZE = 64  # images


@dataclass(frozen=True)
class ClassProbability:
    label: str
    probability: float


@dataclass(frozen=True)
class ImagePrediction:
    """Prediction for one image. top: the most probable classes, the most probable first."""

    image: str
    top: list[ClassProbability]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object: the most probable class stands beside the list as well."""
        return {
            "image": self.image,
            **asdict(self.top[0]),
            "top": [asdict(guess) for guess in self.top],
        }


@dataclass(frozen=True)
class Failed:
    """An image file that cannot be read or decoded."""

    image: str
    error: VggexpError

    def to_dict(self) -> dict[str, Any]:
        return {"image": self.image, "error": str(self.error)}


def predict_images(
    path: Path, images: Sequence[Path], top: int
) -> Iterator[ImagePrediction | Failed]:
    """Yields a prediction for each image, or the error of a file that cannot be decoded.

    Args:
        path: a run directory or an exported file.
        top: number of classes in each prediction.

    Raises:
        CheckpointError: the run or file cannot be read.
        ConfigError: the network does not take images of 1 or 3 channels.
        DivergedError: a probability is not finite.
        ResourceError: memory is short.
    """
    with memory.oom_as_resource_error(f"in predicting with {path}"):
        model = open_model(path)
        if model.channels not in (1, 3):
            raise ConfigError(
                f"{path}: takes {model.channels} channels; images have 3, or 1 if they are gray"
            )
        for start in range(0, len(images), BATCH_SIZE):
            yield from _predict_batch(model, images[start : start + BATCH_SIZE], top)


def _predict_batch(
    model: ExportedModel, paths: Sequence[Path], top: int
) -> Iterator[ImagePrediction | Failed]:
    images = [_load_image(path, model) for path in paths]
    decoded = [image for image in images if isinstance(image, Tensor)]
    probs = iter(_predict_probs(model, decoded))
    for path, image in zip(paths, images, strict=True):
        match image:
            case Failed():
                yield image
            case Tensor():
                yield ImagePrediction(str(path), _top_classes(next(probs), model.classes, top))


def _load_image(path: Path, model: ExportedModel) -> Tensor | Failed:
    """Returns uint8 [1, channels, image_size, image_size]."""
    try:
        image = read_image(path, model.channels)
    except (DataError, ResourceError) as error:
        return Failed(str(path), error)
    return resize_center_crop(image[None], model.image_size)


@torch.inference_mode()
def _predict_probs(model: ExportedModel, images: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns probabilities [classes] of each image. Raises DivergedError."""
    if not images:
        return []
    probs = model.logits(torch.cat(list(images))).softmax(1)
    if not probs.isfinite().all():
        raise DivergedError("the network's probabilities are not finite")
    return probs.unbind()


def _top_classes(probs: Tensor, classes: Sequence[str], top: int) -> list[ClassProbability]:
    values, indices = probs.topk(min(top, len(classes)))
    guesses = []
    for index, value in zip(indices.tolist(), values.tolist(), strict=True):
        guesses.append(ClassProbability(classes[index], value))
    return guesses
