"""Image files, and loaders that read them."""

import pytest
import torch
from PIL import Image

from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.image_stats import color_basis
from vggexp.data.loaders import StreamingLoader
from vggexp.data.transforms import Preprocess
from vggexp.data.workers import decode_images
from vggexp.rng import generator

CPU = torch.device("cpu")
STRONG = Augment(flip=0.5, crop=2, scale=(1, 1.5), color=0.1, erase=0.5)
SIZE = 16
COUNT = 11


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Image files of different shapes."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        shape = (20 + index, 37 - 2 * index, 3)
        draws = generator(0, "file", index)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture
def streaming_loader(paths):
    """streaming_loader(workers, augment, files) -> a loader of image files."""

    def make(workers=0, augment=NO_AUGMENTATION, files=paths):
        basis = color_basis(decode_images(paths, SIZE, 0)) if augment.color else None
        return StreamingLoader(
            files,
            range(len(files)),
            Preprocess(SIZE, torch.full((3,), 0.5), torch.full((3,), 0.25)),
            batch_size=4,
            device=CPU,
            workers=workers,
            augment=augment,
            basis=basis,
        )

    return make


def assert_same_batches(batches, expected):
    batches = list(batches)
    expected = list(expected)
    assert len(batches) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
