"""Pictures from files put before a run or an exported file; for vggexp.predict."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp import memory
from vggexp.data.folder import read_image
from vggexp.data.transforms import fit
from vggexp.errors import ConfigError, DataError, DivergedError
from vggexp.exported import Model, opened

BATCH = 64  # pictures that go through the network together

Seen = dict[str, Any]


def predicted(path: Path, images: Sequence[Path], top: int) -> Iterator[Seen]:
    """For each `image` its `label`, `probability` and the `top` likeliest; or the `error` that it cannot be read for.

    Raises CheckpointError, DivergedError, ResourceError, and ConfigError where the network takes no pictures.
    """
    with memory.told(f"in predicting with {path}"):
        model = opened(path)
        if model.channels not in (1, 3):
            raise ConfigError(f"{path}: takes {model.channels} channels; pictures have 3, or 1 where they are grey")
        for start in range(0, len(images), BATCH):
            yield from _batch(model, images[start : start + BATCH], top)


def _batch(model: Model, paths: Sequence[Path], top: int) -> Iterator[Seen]:
    images = [_image(path, model) for path in paths]
    answers = iter(_probabilities(model, [image for image in images if isinstance(image, Tensor)]))
    for path, image in zip(paths, images, strict=True):
        found = {"error": image} if isinstance(image, str) else _likeliest(next(answers), model.classes, top)
        yield {"image": str(path), **found}


def _image(path: Path, model: Model) -> Tensor | str:
    """uint8 [1, channels, side, side], or why there is none."""
    try:
        return fit(read_image(path, model.channels)[None], model.side)
    except DataError as error:
        return str(error)


@torch.inference_mode()
def _probabilities(model: Model, images: Sequence[Tensor]) -> Sequence[Tensor]:
    """[classes] for each image."""
    scores = model.logits(torch.cat(list(images))).softmax(1) if images else torch.empty(0)
    if not scores.isfinite().all():
        raise DivergedError("the network's scores are not finite")
    return scores.unbind()


def _likeliest(scores: Tensor, classes: Sequence[str], top: int) -> Seen:
    values, places = scores.topk(min(top, len(classes)))
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    best = [{"label": classes[place], "probability": value} for place, value in pairs]
    return {**best[0], "top": best}
