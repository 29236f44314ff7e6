"""Collects what a run's network sees in images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggexp.data.image_file import read_image
from vggexp.data.transforms import resize_center_crop
from vggexp.errors import ConfigError, DataError
from vggexp.look.saliency import FeatureMaps, feature_maps, first_filters, grad_cam, occlusion
from vggexp.runner.load import (
    LoadedRun,
    build_loaded_run,
    load_test_data,
    load_tested_checkpoint,
    test_only_config,
)
from vggexp.runs.data_root import locate_data
from vggexp.runs.predictions import Mistake, worst_mistakes

MISTAKES = 25
TOP_CLASSES = 5
CHANNELS = 8  # feature maps of each stage
GRAY = 0.5  # what covers a part of an image that is not normalized


@dataclass(frozen=True)
class Picture:
    """An image that is looked at."""

    name: str
    pixels: Tensor  # uint8 [C, size, size], as the network receives it before normalization
    label: int | None  # the true class, if known
    mistake: Mistake | None = None  # what the run's own test predicted, of a test image


@dataclass(frozen=True)
class Heat:
    """Where the evidence for a class lies, [size, size] each."""

    label: int
    grad_cam: Tensor
    occlusion: Tensor


@dataclass(frozen=True)
class Look:
    """What the network sees in a picture. probs: [classes]."""

    picture: Picture
    probs: Tensor
    heats: list[Heat]  # of the predicted class, and of the true one if it is another
    stages: list[FeatureMaps]

    @property
    def predicted(self) -> int:
        return int(self.probs.argmax())


def open_run(path: Path) -> tuple[LoadedRun, dict[str, Any]]:
    """Loads a run whose network takes gray or color images, and its tested checkpoint.

    Raises:
        CheckpointError: the run cannot be loaded.
        ConfigError: the network takes other images.
    """
    config, tested = load_tested_checkpoint(path)
    run = build_loaded_run(config, tested, path)
    channels = input_channels(run)
    if channels not in (1, 3):
        raise ConfigError(
            f"{path}: takes {channels} channels; images have 3, or 1 if they are gray"
        )
    return run, tested


def input_channels(run: LoadedRun) -> int:
    return first_filters(run.model).shape[1]


def read_picture(path: Path, run: LoadedRun) -> Picture:
    """Reads an image file. Its folder names the true class if the run has a class of that name.

    Raises:
        DataError: the file is no image.
    """
    image = read_image(path, input_channels(run))
    pixels = resize_center_crop(image[None], run.preprocess.size)[0]
    folder = path.absolute().parent.name
    label = run.classes.index(folder) if folder in run.classes else None
    return Picture(str(path), pixels, label)


def read_mistakes(
    run: LoadedRun, tested: dict[str, Any], data_folder: Path | None
) -> list[Picture]:
    """Returns the test images with the most confident wrong predictions of a finished run.

    Args:
        run: the run.
        tested: the checkpoint that the run was tested with.
        data_folder: folder of the run's data; None: data.root of the run.

    Raises:
        CheckpointError: the predictions are damaged, or the data has changed.
        DataError: the data is missing, or the run made no mistake.
    """
    config = test_only_config(locate_data(run.config, run.path, data_folder))
    mistakes = worst_mistakes(run.predictions, MISTAKES)
    if not mistakes:
        raise DataError(f"{run.path}: no test image is classified wrongly")
    data = load_test_data(config, run.path, tested, torch.device("cpu"))
    images = data.test_images(torch.tensor([mistake.index for mistake in mistakes]))
    pictures = []
    for mistake, image in zip(mistakes, images, strict=True):
        pixels = resize_center_crop(image[None], data.preprocess.size)[0]
        pictures.append(Picture(f"test image {mistake.index}", pixels, mistake.label, mistake))
    return pictures


def look_at(run: LoadedRun, pictures: Sequence[Picture]) -> Iterator[Look]:
    """Yields what the network of a run sees in each picture."""
    model = run.model
    assert isinstance(model, nn.Sequential)
    fill = GRAY if run.preprocess.mean is None else 0.0
    for picture in pictures:
        image = run.preprocess(picture.pixels[None])
        with torch.inference_mode():
            probs = model(image).softmax(1)[0]
        labels = [int(probs.argmax())]
        if picture.label is not None and picture.label not in labels:
            labels.append(picture.label)
        falls = occlusion(model, image, fill)
        heats = [Heat(label, grad_cam(model, image, label), falls[label]) for label in labels]
        yield Look(picture, probs, heats, list(feature_maps(model, image, CHANNELS)))
