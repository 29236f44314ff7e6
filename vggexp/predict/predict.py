"""Pictures from files put before a run or an exported file; for vggexp.predict."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.data.image_folder import read_image
from vggexp.data.transforms import resize_center_crop
from vggexp.errors import ConfigError, DataError, DivergedError
from vggexp.export.exported_model import ExportedModel, open_model
from vggexp.system import memory

BATCH = 64  # pictures that go through the network together

ImagePrediction = dict[str, Any]


def predict_images(path: Path, images: Sequence[Path], top: int) -> Iterator[ImagePrediction]:
    """For each `image` its `label`, `probability` and the `top` likeliest; or the `error` that it cannot be read for.

    Raises CheckpointError, DivergedError, ResourceError, and ConfigError where the network takes no pictures.
    """
    with memory.oom_as_resource_error(f"in predicting with {path}"):
        model = open_model(path)
        if model.channels not in (1, 3):
            raise ConfigError(
                f"{path}: takes {model.channels} channels; pictures have 3, or 1 where they are grey"
            )
        for start in range(0, len(images), BATCH):
            yield from _batch(model, images[start : start + BATCH], top)


def _batch(model: ExportedModel, paths: Sequence[Path], top: int) -> Iterator[ImagePrediction]:
    images = [_image(path, model) for path in paths]
    answers = iter(_probabilities(model, [image for image in images if isinstance(image, Tensor)]))
    for path, image in zip(paths, images, strict=True):
        found = (
            {"error": image}
            if isinstance(image, str)
            else _top_k(next(answers), model.classes, top)
        )
        yield {"image": str(path), **found}


def _image(path: Path, model: ExportedModel) -> Tensor | str:
    """uint8 [1, channels, side, side], or why there is none."""
    try:
        return resize_center_crop(read_image(path, model.channels)[None], model.side)
    except DataError as error:
        return str(error)


@torch.inference_mode()
def _probabilities(model: ExportedModel, images: Sequence[Tensor]) -> Sequence[Tensor]:
    """[classes] for each image."""
    scores = model.logits(torch.cat(list(images))).softmax(1) if images else torch.empty(0)
    if not scores.isfinite().all():
        raise DivergedError("the network's scores are not finite")
    return scores.unbind()


def _top_k(scores: Tensor, classes: Sequence[str], top: int) -> ImagePrediction:
    values, places = scores.topk(min(top, len(classes)))
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    best = [{"label": classes[place], "probability": value} for place, value in pairs]
    return {**best[0], "top": best}
