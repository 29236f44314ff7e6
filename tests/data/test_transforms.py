"""Resizing agrees with torchvision; each augmentation keeps its range and draws for each image."""

import gzip
from pathlib import Path

import numpy
import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from vggexp.data.transforms import (
    PLAIN,
    Augment,
    AugmentParams,
    Preprocess,
    channel_mean_std,
    color_basis,
    crop,
    crop_each,
    crop_grid,
    crop_windows,
    erase,
    erase_boxes,
    resample,
    resize_center_crop,
    resize_matrices,
    resize_shorter_side,
    sample_augmentation,
)
from vggexp.rng import generator

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
LEVEL = 1.001  # one of 255, and room for float32


def pictures(count=2, channels=3, height=28, width=None):
    shape = (count, channels, height, width or height)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=generator(0, "pictures", shape)
    )


def augmented(images, size, augment, words="test"):
    basis = color_basis(images) if augment.color else None
    changes = sample_augmentation(
        generator(0, words), len(images), images.shape[-2], images.shape[-1], size, augment, basis
    )
    return Preprocess(size, None, None)(images, changes)


SIZES = [(28, 96, 1), (28, 32, 3), (32, 224, 3), (96, 32, 1), (100, 33, 3), (64, 63, 1), (8, 8, 3)]


@pytest.mark.parametrize(("side", "size", "channels"), SIZES)
def test_resize_is_torchvisions(side, size, channels):
    images = pictures(2, channels, side)
    expected = torchvision.resize(images, [size, size], antialias=True).float()
    window = torch.tensor([[size, size, 0, 0, 0]]).expand(2, 5)
    assert (255 * Preprocess(size, None, None)(images) - expected).abs().max() <= LEVEL
    assert (resample(images, window, size) - expected).abs().max() <= LEVEL
    exact = torchvision.resize(images.float(), [size, size], antialias=True)
    torch.testing.assert_close(resample(images, window, size), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 60, 32), (61, 40, 32), (33, 90, 33), (20, 31, 48)]
)
def test_the_middle_square_is_torchvisions(height, width, size):
    images = pictures(1, 3, height, width)
    expected = torchvision.center_crop(
        torchvision.resize(images, [size], antialias=True), [size, size]
    )
    assert torch.equal(resize_center_crop(images, size), expected)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(40, 60, 32), (61, 40, 50), (28, 28, 28), (20, 31, 48)]
)
def test_the_whole_picture_is_torchvisions(height, width, side):
    images = pictures(1, 3, height, width)
    assert torch.equal(
        resize_shorter_side(images, side), torchvision.resize(images, [side], antialias=True)
    )


@pytest.mark.parametrize(
    ("height", "width", "count", "corners"),
    [
        (20, 20, 1, [(2, 2)]),
        (16, 24, 2, [(0, 0), (0, 8), (0, 0), (0, 8)]),
        (24, 18, 3, [(0, 0), (0, 1), (0, 2), (4, 0), (4, 1), (4, 2), (8, 0), (8, 1), (8, 2)]),
        (12, 16, 1, [(-2, 0)]),
    ],
)
def test_windows_at_even_distances(height, width, count, corners):
    assert crop_grid(height, width, 16, count) == [
        (height, width, *corner, 0) for corner in corners
    ]


def test_one_window_alone_is_that_of_the_test():
    for height, width, size in [(40, 60, 32), (61, 40, 33), (28, 28, 28), (33, 90, 20)]:
        images = pictures(1, 3, height, width)
        scaled = resize_shorter_side(images, size)
        (window,) = crop_grid(*scaled.shape[-2:], size, 1)
        assert torch.equal(crop(scaled, window, size), resize_center_crop(images, size))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_same_size_is_left_alone(side):
    images = pictures(3, 1, side)
    plain = Preprocess(side, None, None)(images)
    assert torch.equal(plain, images / 255)
    assert torch.equal(Preprocess(side, None, None)(images.float()), plain)
    for nothing in (Augment(scale=(1, 1)), Augment(flip=1e-9)):
        torch.testing.assert_close(augmented(images, side, nothing), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "augment", [Augment(1, 4), Augment(0.5, 0, (1.1, 2.3)), Augment(0.5, 9, (1, 1.25)), PLAIN]
)
@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 24), (40, 30, 32), (20, 50, 20)])
def test_one_window_and_many_agree(augment, height, width, size):
    images = pictures(6, 3, height, width).float()
    frames = crop_windows(
        torch.rand(6, 10, generator=generator(0, "windows")), height, width, size, augment
    )
    alone = [
        crop(image[None], frame, size)[0]
        for image, frame in zip(images, frames.tolist(), strict=True)
    ]
    assert (resample(images, frames, size) - torch.stack(alone)).abs().max() <= 0.1


def test_shift_and_flip_without_resize_are_exact():
    images = pictures(1, 3, 8)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4)).float()
    for top, left in [(0, 0), (-4, 4), (3, -2)]:
        expected = padded[..., 4 + top : 12 + top, 4 + left : 12 + left]
        assert torch.equal(resample(images, torch.tensor([[8, 8, top, left, 0]]), 8), expected)
        assert torch.equal(
            resample(images, torch.tensor([[8, 8, top, left, 1]]), 8), expected.flip(-1)
        )


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 28), (20, 30, 20), (20, 30, 24)])
def test_pictures_that_are_only_moved_keep_their_bits(height, width, size):
    images = pictures(40, 3, height, width)
    frames = crop_windows(
        torch.rand(40, 11, generator=generator(0, "moved")), height, width, size, Augment(0.5, 4)
    )
    moved = crop_each(images, frames, size)
    assert torch.equal(moved.float(), resample(images, frames, size))
    assert moved.dtype == (
        torch.uint8 if size == height else torch.float32
    )  # only these are not scaled


@pytest.mark.parametrize("size", [28, 40])
def test_flip_twice_is_nothing(size):
    images = pictures(4, 1)
    once = augmented(images, size, Augment(flip=1))
    torch.testing.assert_close(
        once.flip(-1), augmented(images, size, Augment(scale=(1, 1))), atol=1e-6, rtol=0
    )
    if size == 28:
        assert torch.equal(augmented(255 * once, size, Augment(flip=1)), images / 255)


def test_windows_keep_their_range():
    uniform = torch.rand(4000, 10, generator=generator(0, "range"))
    for extreme in (uniform, torch.zeros(1, 10), torch.full((1, 10), 1 - 2**-24)):
        height, width, top, left, _ = crop_windows(
            extreme, 300, 500, 224, Augment(scale=(256 / 224, 512 / 224))
        ).unbind(1)
        assert height.min() >= 256 and height.max() <= 512 and (width == height * 500 // 300).all()
        assert (
            top.min() >= 0
            and left.min() >= 0
            and (top <= height - 224).all()
            and (left <= width - 224).all()
        )
    place = crop_windows(uniform, 32, 32, 32, Augment(crop=4))[:, 2:4]
    assert place.unique().tolist() == list(range(-4, 5))
    assert 0.45 < crop_windows(uniform, 8, 8, 8, Augment(flip=0.5))[:, 4].float().mean() < 0.55


EACH = {
    "crop": (Augment(crop=8), 33),
    "scale": (Augment(scale=(1.1, 2)), 60),
    "color": (Augment(color=0.1), 64),
    "erase": (Augment(erase=1), 60),
    "flip": (Augment(flip=0.5), 2),
    "all": (Augment(0.5, 4, (1, 1.25), 0.1, 0.5), 64),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EACH)
def test_draws_are_per_image_and_reproducible(name, channels):
    augment, distinct = EACH[name]
    images = pictures(1, channels).expand(64, -1, -1, -1)
    result = augmented(images, 28, augment)
    assert torch.equal(result, augmented(images, 28, augment))
    assert not torch.equal(result, augmented(images, 28, augment, "other"))
    assert len(result.flatten(1).unique(dim=0)) >= distinct


def test_one_operation_leaves_the_draws_of_another():
    images = pictures(64)
    together = sample_augmentation(
        generator(0), 64, 28, 28, 28, Augment(0.5, 4, None, 0.1, 0.5), color_basis(images)
    )
    for alone in (Augment(flip=0.5), Augment(erase=0.5)):
        changes = sample_augmentation(generator(0), 64, 28, 28, 28, alone)
        assert changes.window is None or torch.equal(changes.window[:, 4], together.window[:, 4])
        assert changes.box is None or torch.equal(changes.box, together.box)
    assert sample_augmentation(generator(0), 64, 28, 28, 28, PLAIN) == AugmentParams()


def test_erased_boxes_keep_their_range():
    box = erase_boxes(torch.rand(2000, 5, generator=generator(0, "boxes")), 64, 0.5)
    sides = box[:, 2:] - box[:, :2]
    area = sides.prod(1)
    assert box.min() >= 0 and box.max() <= 64 and 0.45 < (area > 0).float().mean() < 0.55
    area, aspect = area[area > 0] / 64**2, (sides[:, 0] / sides[:, 1])[area > 0]
    assert 0.015 < area.min() < 0.03 and 0.38 < area.max() < 0.41
    assert 0.25 < aspect.min() < 0.35 and 2.9 < aspect.max() < 4
    blanked = erase(torch.ones(100, 3, 64, 64), box[:100])
    assert torch.equal((blanked == 0).sum((1, 2, 3)), 3 * sides.prod(1)[:100])


def test_color_shift_follows_the_pixels():
    images = pictures(50, 3)
    images[:, 1] = images[:, 0]  # two channels in step, so that the covariance is singular
    basis = color_basis(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(
        (basis @ basis).double(), pixels.cov(correction=0), atol=1e-6, rtol=0
    )
    shift = sample_augmentation(generator(0), 500, 28, 28, 28, Augment(color=0.1), basis).shift
    torch.testing.assert_close(shift[:, 0], shift[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(shift.std(0), 0.1 * pixels.std(1).float(), atol=0, rtol=0.1)
    torch.testing.assert_close(
        color_basis(images[:, :1]).flatten(), channel_mean_std(images[:, :1])[1]
    )
    with pytest.raises(ValueError, match="color_basis"):
        sample_augmentation(generator(0), 1, 28, 28, 28, Augment(color=0.1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalised_by_statistics(channels_last):
    images = pictures(20, 3)
    mean, std = channel_mean_std(images)
    result = Preprocess(28, mean, std, channels_last)(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0))
    torch.testing.assert_close(
        result, torchvision.normalize(images / 255, mean.tolist(), std.tolist())
    )
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=order)
    assert (
        channel_mean_std(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))[1] == 1
    )  # nothing to divide by


def test_black_is_added_before_normalisation():
    images = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    changes = AugmentParams(window=torch.tensor([[8, 8, 0, 4, 0]]))
    result = Preprocess(8, torch.tensor([0.5]), torch.tensor([0.25]))(images, changes)
    assert result[0, 0, 0].tolist() == [2.0] * 4 + [-2.0] * 4


@pytest.mark.debian
def test_statistics_of_fashion_mnist():
    pixels = numpy.frombuffer(gzip.decompress(FASHION_MNIST.read_bytes()), numpy.uint8, offset=16)
    images = torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)
    mean, std = channel_mean_std(images)
    assert (round(mean.item(), 5), round(std.item(), 5)) == (0.28604, 0.35302)


def test_flip_and_erase_are_drawn_apart():
    changes = sample_augmentation(
        generator(0, "apart"), 1000, 8, 8, 8, Augment(flip=0.5, erase=0.5)
    )
    flipped, erased = changes.window[:, 4] > 0, (changes.box[:, 2] > changes.box[:, 0])
    both = [
        int((flipped == one).logical_and(erased == other).sum())
        for one in (0, 1)
        for other in (0, 1)
    ]
    assert min(both) > 180


@pytest.mark.parametrize(
    ("height", "width", "size", "off"),
    [
        (8, 8, 16, 0),
        (28, 28, 96, 0),
        (28, 28, 32, 0),
        (32, 32, 224, 0),
        (32, 32, 20, 0),
        (224, 224, 64, 0),
        (64, 64, 224, 1),
        (97, 131, 224, 1),
        (300, 200, 96, 1),
    ],
)
def test_fitting_as_two_products_has_the_pixels_of_torchs_kernel(height, width, size, off):
    images = torch.randint(
        0, 256, (8, 2, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    rows, columns = resize_matrices(height, width, size)
    found = (rows @ (images.float() @ columns + 0.5).floor() + 0.5).floor()
    difference = (found - resize_center_crop(images, size).float()).abs()
    assert difference.max() <= off and (difference > 0).float().mean() < 0.003
