"""Image grids, confusion matrices and mistakes, drawn as arrays."""

import numpy as np
import pytest

from vggexp.loggers import images as images_module
from vggexp.loggers.images import confusion_image, image_grid, mistakes_image
from vggexp.runs.confusion import count_confusions
from vggexp.runs.predictions import Mistake


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (7, 3, 28, 28), (10, 2, 300, 200), (4, 4, 64, 64)])
def test_grid_takes_any_shape_and_range(shape):
    images = np.random.default_rng(0).normal(3, 50, shape)
    images[0, 0, 0, 0] = np.nan
    grid = image_grid(images)
    assert grid.dtype == np.uint8
    assert grid.shape[2] == 3
    assert grid.size >= images.size * 3 / shape[1]


def test_grid_keeps_bytes_and_stretches_floats():
    assert set(np.unique(image_grid(np.full((1, 1, 64, 64), 90, np.uint8)))) == {90, 255}
    ramp = np.linspace(-2, 2, 64 * 64).reshape(1, 1, 64, 64)
    tile = image_grid(ramp)[4:-4, 4:-4]
    assert (tile[0, 0] == 0).all()
    assert (tile[-1, -1] == 255).all()


@pytest.mark.parametrize("count", [2, 10, 30, 100, 1000])
def test_a_confusion_matrix_has_a_blue_diagonal_and_red_mistakes(count):
    labels = np.arange(count)
    confusions = count_confusions(np.append(labels, 0), np.append(labels, 1), count)
    image = confusion_image(confusions, [f"class {i}" for i in range(count)])
    assert image.dtype == np.uint8
    assert max(image.shape) < 1400
    pixels = image.reshape(-1, 3).astype(int)
    blue = ((pixels[:, 2] - pixels[:, 0]) > 60).sum()
    red = ((pixels[:, 0] - pixels[:, 2]) > 60).sum()
    assert blue > red
    assert red > 0


@pytest.mark.parametrize("mistakes", [0, 3, 100])
def test_too_many_classes_for_a_matrix_are_a_list_of_mistakes(mistakes):
    labels = np.arange(12_000)
    predicted = labels.copy()
    predicted[:mistakes] = 11_999
    image = confusion_image(count_confusions(labels, predicted, 12_000), ["\x1b" * 99] * 12_000)
    assert image.shape[0] == 20 * (1 + min(25, mistakes)) + 24
    assert image.shape[1] < 600
    assert (image < 100).any()


def test_a_caption_has_both_classes_and_the_probability(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        images_module, "_arrange_with_captions", lambda tiles, captions: drawn.extend(captions)
    )
    mistakes = [Mistake(3, 1, 0, 0.98, 0.01), Mistake(0, 0, 1, 0.7, 0.2)]
    mistakes_image(np.zeros((2, 1, 8, 8), np.uint8), mistakes, ["cat", "dog"])
    assert drawn == ["dog -> cat 0.98", "cat -> dog 0.70"]


@pytest.mark.parametrize("count", [0, 3])
def test_mistakes_are_drawn_without_mistakes_and_with_long_names(count):
    mistakes = [Mistake(0, 0, 1, 0.9, 0.1)] * count
    names = ["a very long name\n" * 9, "b"]
    image = mistakes_image(np.zeros((count, 3, 32, 32)), mistakes, names)
    assert image.dtype == np.uint8
    assert image.shape[1] < 800
