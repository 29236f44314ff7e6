"""What is averaged over: windows, scales and mirror images, against the same done by hand with torchvision."""

import contextlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from vggexp.data.loaders import InMemoryLoader, StreamingLoader
from vggexp.data.transforms import Preprocess
from vggexp.evaluate.views import MultiViewPredictor, views
from vggexp.models.dense import to_fully_convolutional
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.rng import generator
from vggexp.training.metrics import predict

CPU, PLAIN = torch.device("cpu"), contextlib.nullcontext
SIZE, COUNT, BATCH = 16, 11, 4
PREPROCESS = Preprocess(SIZE, torch.full((3,), 0.5), torch.full((3,), 0.25))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    facts = {"in_channels": 3, "size": SIZE, "classes": 5}
    return vgg(
        [Block(1, 8), Block(1, 12)], norm="none", hidden=(16,), dropout=0.5, width=1, **facts
    ).eval()


@pytest.fixture
def resident():
    images = torch.randint(
        0, 256, (COUNT, 3, 12, 12), dtype=torch.uint8, generator=generator(0, "images")
    )
    return InMemoryLoader(images, torch.arange(COUNT) % 5, PREPROCESS, batch_size=BATCH, device=CPU)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(COUNT):
        shape = [(40, 30), (30, 40), (25, 25)][place % 3]
        pixels = torch.randint(
            0, 256, (*shape, 3), dtype=torch.uint8, generator=generator(0, "file", place)
        )
        Image.fromarray(pixels.numpy()).save(folder / f"{place:02}.png")
    return sorted(folder.iterdir())


def streaming(paths, workers=0):
    labels = [place % 5 for place in range(COUNT)]
    return StreamingLoader(paths, labels, PREPROCESS, batch_size=BATCH, device=CPU, workers=workers)


def seen(model, batches, mode, scales=(SIZE,), flip=False):
    return MultiViewPredictor(model, PREPROCESS, PLAIN, BATCH, flip).probabilities(
        batches.full_images(scales), mode
    )


def whole(picture, side):
    """[3, H, W] -> [1, 3, h, w] with torchvision's resize."""
    return torchvision.resize(picture, [side], antialias=True)[None]


def normal(picture):
    return (picture.float() / 255 - 0.5) / 0.25


def mirrored(pictures, flip):
    return [*pictures, *(picture.flip(-1) for picture in pictures)] if flip else list(pictures)


def crops(picture, grid):
    """grid x grid windows of SIZE."""
    height, width = picture.shape[-2:]
    steps = [index / (grid - 1) for index in range(grid)] if grid > 1 else [0.5]
    corners = [
        (round(down * (height - SIZE)), round(across * (width - SIZE)))
        for down in steps
        for across in steps
    ]
    return [picture[..., top : top + SIZE, left : left + SIZE] for top, left in corners]


@torch.inference_mode()
def by_hand(model, picture, mode, scales, flip):
    """[K], the mean of the soft-max, one picture and one view at a time."""
    if mode == "both":
        return (
            by_hand(model, picture, "dense", scales, flip)
            + by_hand(model, picture, "crops", scales, flip)
        ) / 2
    network = to_fully_convolutional(model) if mode == "dense" else model
    shown = []
    for side in scales:
        scaled = whole(picture, side)
        shown += mirrored(
            [scaled] if mode == "dense" else crops(scaled, 5 if mode == "crops" else 1), flip
        )
    return torch.stack([network(normal(view)).softmax(1)[0].double() for view in shown]).mean(0)


CASES = [
    ("single", (16,), False),
    ("single", (16, 20), True),
    ("dense", (16,), False),
    ("dense", (16, 19, 24), True),
    ("crops", (20,), False),
    ("crops", (18, 25), True),
    ("both", (16, 21), True),
]


@pytest.mark.parametrize(("mode", "scales", "flip"), CASES)
def test_resident_by_hand(model, resident, mode, scales, flip):
    scores, labels = seen(model, resident, mode, scales, flip)
    wanted = torch.stack(
        [by_hand(model, picture, mode, scales, flip) for picture in resident.images]
    )
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=0)
    assert labels.tolist() == [place % 5 for place in range(COUNT)]


@pytest.mark.parametrize(("mode", "scales", "flip"), CASES)
def test_pictures_of_several_shapes_by_hand(model, paths, mode, scales, flip):
    scores, labels = seen(model, streaming(paths), mode, scales, flip)
    pictures = [torchvision.pil_to_tensor(Image.open(path)) for path in paths]
    wanted = torch.stack([by_hand(model, picture, mode, scales, flip) for picture in pictures])
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=0)
    assert labels.tolist() == [place % 5 for place in range(COUNT)]


def test_single_is_the_runs_own_test_bit_for_bit(model, resident, paths):
    for batches in (resident, streaming(paths)):
        logits, _ = predict(model, batches.evaluate(), PLAIN)
        assert torch.equal(seen(model, batches, "single")[0], logits.softmax(1).double())


def test_a_smaller_scale_has_a_black_border(model, resident):
    scores, _ = seen(model, resident, "single", (12,))
    framed = torch.nn.functional.pad(resident.images, (2, 2, 2, 2))
    torch.testing.assert_close(scores, model(normal(framed)).softmax(1).double(), atol=1e-6, rtol=0)


def test_workers_change_nothing(model, paths):
    alone, helped = (seen(model, streaming(paths, workers), "both", (16, 20)) for workers in (0, 2))
    assert torch.equal(alone[0], helped[0])


@pytest.fixture
def shown(model):
    """What the network is given: the number of pictures and their side."""
    given = []
    handle = model[0].register_forward_pre_hook(
        lambda _, images: given.append((len(images[0]), images[0].shape[-1]))
    )
    yield given
    handle.remove()


def test_windows_at_the_same_place_are_shown_once(model, resident, shown):
    seen(model, resident, "crops", (SIZE,))
    assert shown == [(4, 16), (4, 16), (3, 16)]  # no room: all 25 are one
    shown.clear()
    seen(model, resident, "crops", (SIZE + 1, SIZE + 8))
    assert len(shown) == 3 * (4 + 25)


def test_larger_pictures_are_taken_fewer_at_a_time(model, resident, shown):
    seen(model, resident, "dense", (16, 22, 100))
    batch = [(2, 22), (2, 22), *[(1, 100)] * 4]  # 4 x 16 x 16 pixels at a time
    assert shown == [(4, 16), *batch, (4, 16), *batch, (3, 16), (2, 22), (1, 22), *[(1, 100)] * 3]


@pytest.mark.parametrize(
    ("mode", "scales", "flip", "count"),
    [
        ("single", 1, False, 1),
        ("dense", 3, True, 6),
        ("crops", 1, True, 50),
        ("crops", 3, True, 150),
        ("both", 3, True, 156),
    ],
)
def test_how_many_views(mode, scales, flip, count):
    assert views(mode, scales, flip) == count
