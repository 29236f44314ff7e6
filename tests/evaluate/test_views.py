"""The views that are averaged, against a slow implementation with torchvision."""

import contextlib

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from vggexp.data.image_views import ImageViews
from vggexp.data.loaders import InMemoryLoader, StreamingLoader
from vggexp.data.transforms import Preprocess
from vggexp.evaluate.views import MultiViewPredictor, count_views
from vggexp.models.dense import to_fully_convolutional
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.rng import generator
from vggexp.training.metrics import predict

pytestmark = pytest.mark.catalog

CPU = torch.device("cpu")
NO_AUTOCAST = contextlib.nullcontext
SIZE = 16
COUNT = 11
BATCH_SIZE = 4
LABELS = [index % 5 for index in range(COUNT)]
PREPROCESS = Preprocess(SIZE, torch.full((3,), 0.5), torch.full((3,), 0.25))
ALONE = ImageViews()
MIRRORED = ImageViews(flip=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = vgg(
        [Block(1, 8), Block(1, 12)],
        norm="none",
        hidden=(16,),
        dropout=0.5,
        width=1,
        in_channels=3,
        size=SIZE,
        classes=5,
    )
    return network.eval()


def random_pixels(shape, *keys):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, *keys))


@pytest.fixture
def in_memory():
    images = random_pixels((COUNT, 3, 12, 12), "images")
    labels = torch.tensor(LABELS)
    return InMemoryLoader(images, labels, PREPROCESS, batch_size=BATCH_SIZE, device=CPU)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Images of three shapes."""
    folder = tmp_path_factory.mktemp("images")
    shapes = [(40, 30), (30, 40), (25, 25)]
    for index in range(COUNT):
        pixels = random_pixels((*shapes[index % 3], 3), "file", index)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02}.png")
    return sorted(folder.iterdir())


def streaming(paths, workers=0):
    return StreamingLoader(
        paths, LABELS, PREPROCESS, batch_size=BATCH_SIZE, device=CPU, workers=workers
    )


def predict_views(model, loader, mode, scales=(SIZE,), copies=ALONE):
    predictor = MultiViewPredictor(model, PREPROCESS, NO_AUTOCAST, BATCH_SIZE, copies)
    return predictor.predict(loader.full_images(scales), mode)


def normalize(image):
    return (image.float() / 255 - 0.5) / 0.25


def crop_image(image, grid):
    """Returns grid x grid crops of SIZE."""
    height, width = image.shape[-2:]
    steps = [0.5]
    if grid > 1:
        steps = [index / (grid - 1) for index in range(grid)]
    crops = []
    for vertical in steps:
        for horizontal in steps:
            top = round(vertical * (height - SIZE))
            left = round(horizontal * (width - SIZE))
            crops.append(image[..., top : top + SIZE, left : left + SIZE])
    return crops


def shifted(image, pixels):
    """Returns the image, and with `pixels` also the image moved in four directions."""
    moves = [(0, 0)]
    if pixels:
        moves += [(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)]
    return [torch.nn.functional.pad(image, (x, -x, y, -y)) for x, y in moves]


@torch.inference_mode()
def expected_probs(model, image, mode, scales, copies):
    """Returns the mean of the softmax, [K], for one image [3, H, W] and one view at a time."""
    if mode == "both":
        dense = expected_probs(model, image, "dense", scales, copies)
        crops = expected_probs(model, image, "crops", scales, copies)
        return (dense + crops) / 2
    network = to_fully_convolutional(model) if mode == "dense" else model
    probs = []
    for scale in scales:
        scaled = torchvision.resize(image, [scale], antialias=True)[None]
        views = [scaled]
        if mode != "dense":
            views = crop_image(scaled, 5 if mode == "crops" else 1)
        views = [moved for view in views for moved in shifted(view, copies.shift)]
        if copies.flip:
            views += [view.flip(-1) for view in views]
        probs += [network(normalize(view)).softmax(1)[0].double() for view in views]
    return torch.stack(probs).mean(0)


CASES = [
    ("single", (16,), ALONE),
    ("single", (16, 20), MIRRORED),
    ("single", (17,), ImageViews(shift=3)),
    ("dense", (16,), ALONE),
    ("dense", (16, 19, 24), ImageViews(flip=True, shift=1)),
    ("crops", (20,), ALONE),
    ("crops", (18, 25), MIRRORED),
    ("both", (16, 21), MIRRORED),
]


@pytest.mark.parametrize(("mode", "scales", "copies"), CASES)
def test_images_in_memory(model, in_memory, mode, scales, copies):
    probs, labels = predict_views(model, in_memory, mode, scales, copies)
    expected = [expected_probs(model, image, mode, scales, copies) for image in in_memory.images]
    torch.testing.assert_close(probs, torch.stack(expected), atol=1e-6, rtol=0)
    assert labels.tolist() == LABELS


@pytest.mark.parametrize(("mode", "scales", "copies"), CASES)
def test_images_of_several_shapes(model, paths, mode, scales, copies):
    probs, labels = predict_views(model, streaming(paths), mode, scales, copies)
    images = [torchvision.pil_to_tensor(Image.open(path)) for path in paths]
    expected = [expected_probs(model, image, mode, scales, copies) for image in images]
    torch.testing.assert_close(probs, torch.stack(expected), atol=1e-6, rtol=0)
    assert labels.tolist() == LABELS


def test_single_is_the_run_s_own_test_evaluation_bit_for_bit(model, in_memory, paths):
    for loader in (in_memory, streaming(paths)):
        logits, _ = predict(model, loader.evaluate(), NO_AUTOCAST)
        probs, _ = predict_views(model, loader, "single")
        assert torch.equal(probs, logits.softmax(1).double())


def test_a_smaller_scale_has_a_black_border(model, in_memory):
    probs, _ = predict_views(model, in_memory, "single", (12,))
    padded = torch.nn.functional.pad(in_memory.images, (2, 2, 2, 2))
    expected = model(normalize(padded)).softmax(1).double()
    torch.testing.assert_close(probs, expected, atol=1e-6, rtol=0)


def test_workers_change_nothing(model, paths):
    alone, _ = predict_views(model, streaming(paths), "both", (16, 20))
    with_workers, _ = predict_views(model, streaming(paths, workers=2), "both", (16, 20))
    assert torch.equal(alone, with_workers)


@pytest.fixture
def passes(model):
    """The number of images and their size in each pass of the network."""
    shapes = []
    handle = model[0].register_forward_pre_hook(
        lambda _, inputs: shapes.append((len(inputs[0]), inputs[0].shape[-1]))
    )
    yield shapes
    handle.remove()


def test_equal_crops_are_computed_once(model, in_memory, passes):
    predict_views(model, in_memory, "crops", (SIZE,))
    assert passes == [(4, 16), (4, 16), (3, 16)]  # all 25 crops are the whole image
    passes.clear()
    predict_views(model, in_memory, "crops", (SIZE + 1, SIZE + 8))
    assert len(passes) == 3 * (4 + 25)


def test_a_pass_takes_fewer_larger_images(model, in_memory, passes):
    predict_views(model, in_memory, "dense", (16, 22, 100))
    # a pass has room for 4 x 16 x 16 pixels
    batch = [(4, 16), (2, 22), (2, 22), (1, 100), (1, 100), (1, 100), (1, 100)]
    last_batch = [(3, 16), (2, 22), (1, 22), (1, 100), (1, 100), (1, 100)]
    assert passes == [*batch, *batch, *last_batch]


@pytest.mark.parametrize(
    ("mode", "scales", "copies", "count"),
    [
        ("single", 1, ALONE, 1),
        ("dense", 3, MIRRORED, 6),
        ("crops", 1, MIRRORED, 50),
        ("crops", 3, MIRRORED, 150),
        ("both", 3, MIRRORED, 156),
        ("single", 2, ImageViews(flip=True, shift=1), 20),
    ],
)
def test_the_number_of_views(mode, scales, copies, count):
    assert count_views(mode, scales, copies) == count
