"""Resizing agrees with torchvision. Each augmentation keeps its range and draws for each image."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.image_stats import channel_mean_std, color_basis
from vggexp.data.transforms import (
    NO_CHANGES,
    AugmentParams,
    Crop,
    CropWindow,
    Preprocess,
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

ONE_LEVEL = 1.001  # one of 255, and a margin for float32


def random_images(count=2, channels=3, height=28, width=None):
    shape = (count, channels, height, width or height)
    draws = generator(0, "pictures", shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)


def random_windows(count, height, width, size, augment, purpose):
    uniform = torch.rand(count, 11, generator=generator(0, purpose))
    return crop_windows(uniform, height, width, size, augment)


def same_window(crop, count):
    """Returns one crop as the window of each image."""
    return CropWindow(*(torch.tensor([value] * count) for value in crop))


def apply_augmentation(images, size, augment, purpose="test"):
    basis = color_basis(images) if augment.color else None
    height, width = images.shape[-2:]
    draws = generator(0, purpose)
    changes = sample_augmentation(draws, len(images), height, width, size, augment, basis)
    return Preprocess(size, None, None)(images, changes)


SIZES = [(28, 96, 1), (28, 32, 3), (32, 224, 3), (96, 32, 1), (100, 33, 3), (64, 63, 1), (8, 8, 3)]


@pytest.mark.parametrize(("side", "size", "channels"), SIZES)
def test_resize_is_torchvisions(side, size, channels):
    images = random_images(2, channels, side)
    expected = torchvision.resize(images, [size, size], antialias=True).float()
    window = same_window(Crop(size, size, 0, 0), 2)
    assert (255 * Preprocess(size, None, None)(images) - expected).abs().max() <= ONE_LEVEL
    assert (resample(images, window, size) - expected).abs().max() <= ONE_LEVEL
    exact = torchvision.resize(images.float(), [size, size], antialias=True)
    torch.testing.assert_close(resample(images, window, size), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 60, 32), (61, 40, 32), (33, 90, 33), (20, 31, 48)]
)
def test_the_center_square_is_torchvisions(height, width, size):
    images = random_images(1, 3, height, width)
    expected = torchvision.center_crop(
        torchvision.resize(images, [size], antialias=True), [size, size]
    )
    assert torch.equal(resize_center_crop(images, size), expected)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(40, 60, 32), (61, 40, 50), (28, 28, 28), (20, 31, 48)]
)
def test_the_full_image_is_torchvisions(height, width, side):
    images = random_images(1, 3, height, width)
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
        Crop(height, width, *corner) for corner in corners
    ]


def test_a_single_window_is_the_centered_one():
    for height, width, size in [(40, 60, 32), (61, 40, 33), (28, 28, 28), (33, 90, 20)]:
        images = random_images(1, 3, height, width)
        scaled = resize_shorter_side(images, size)
        (window,) = crop_grid(*scaled.shape[-2:], size, 1)
        assert torch.equal(crop(scaled, window, size), resize_center_crop(images, size))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_the_same_size_keeps_the_pixels(side):
    images = random_images(3, 1, side)
    plain = Preprocess(side, None, None)(images)
    assert torch.equal(plain, images / 255)
    assert torch.equal(Preprocess(side, None, None)(images.float()), plain)
    for augment in (Augment(scale=(1, 1)), Augment(flip=1e-9)):
        augmented = apply_augmentation(images, side, augment)
        torch.testing.assert_close(augmented, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "augment",
    [Augment(1, 4), Augment(0.5, 0, (1.1, 2.3)), Augment(0.5, 9, (1, 1.25)), NO_AUGMENTATION],
)
@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 24), (40, 30, 32), (20, 50, 20)])
def test_one_window_and_several_agree(augment, height, width, size):
    images = random_images(6, 3, height, width).float()
    window = random_windows(6, height, width, size, augment, "windows")
    expected = [
        crop(image[None], frame, size)[0]
        for image, frame in zip(images, window.crops(), strict=True)
    ]
    assert (resample(images, window, size) - torch.stack(expected)).abs().max() <= 0.1


def test_shift_and_flip_without_resize_are_exact():
    images = random_images(1, 3, 8)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4)).float()
    for top, left in [(0, 0), (-4, 4), (3, -2)]:
        expected = padded[..., 4 + top : 12 + top, 4 + left : 12 + left]
        window = same_window(Crop(8, 8, top, left), 1)
        mirrored = same_window(Crop(8, 8, top, left, 1), 1)
        assert torch.equal(resample(images, window, 8), expected)
        assert torch.equal(resample(images, mirrored, 8), expected.flip(-1))


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 28), (20, 30, 20), (20, 30, 24)])
def test_images_that_are_only_moved_keep_their_bits(height, width, size):
    images = random_images(40, 3, height, width)
    window = random_windows(40, height, width, size, Augment(0.5, 4), "moved")
    moved = crop_each(images, window, size)
    assert torch.equal(moved.float(), resample(images, window, size))
    is_unscaled = size == height
    assert moved.dtype == (torch.uint8 if is_unscaled else torch.float32)


@pytest.mark.parametrize("size", [28, 40])
def test_two_flips_cancel(size):
    images = random_images(4, 1)
    once = apply_augmentation(images, size, Augment(flip=1))
    unflipped = apply_augmentation(images, size, Augment(scale=(1, 1)))
    torch.testing.assert_close(once.flip(-1), unflipped, atol=1e-6, rtol=0)
    if size == 28:
        twice = apply_augmentation(255 * once, size, Augment(flip=1))
        assert torch.equal(twice, images / 255)


def test_windows_keep_their_range():
    uniform = torch.rand(4000, 10, generator=generator(0, "range"))
    scale_jitter = Augment(scale=(256 / 224, 512 / 224))
    for draws in (uniform, torch.zeros(1, 10), torch.full((1, 10), 1 - 2**-24)):
        height, width, top, left, _ = crop_windows(draws, 300, 500, 224, scale_jitter)
        assert height.min() >= 256
        assert height.max() <= 512
        assert (width == height * 500 // 300).all()
        assert top.min() >= 0
        assert left.min() >= 0
        assert (top <= height - 224).all()
        assert (left <= width - 224).all()
    window = crop_windows(uniform, 32, 32, 32, Augment(crop=4))
    assert window.top.unique().tolist() == list(range(-4, 5))
    assert window.left.unique().tolist() == list(range(-4, 5))
    flipped = crop_windows(uniform, 8, 8, 8, Augment(flip=0.5)).mirrored.float().mean()
    assert abs(flipped - 0.5) < 0.05


DISTINCT_IMAGES = {  # name: augmentation, least number of distinct images of 64
    "crop": (Augment(crop=8), 33),
    "scale": (Augment(scale=(1.1, 2)), 60),
    "color": (Augment(color=0.1), 64),
    "erase": (Augment(erase=1), 60),
    "flip": (Augment(flip=0.5), 2),
    "all": (Augment(0.5, 4, (1, 1.25), 0.1, 0.5), 64),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DISTINCT_IMAGES)
def test_draws_are_per_image_and_reproducible(name, channels):
    augment, least = DISTINCT_IMAGES[name]
    images = random_images(1, channels).expand(64, -1, -1, -1)
    result = apply_augmentation(images, 28, augment)
    assert torch.equal(result, apply_augmentation(images, 28, augment))
    assert not torch.equal(result, apply_augmentation(images, 28, augment, "other"))
    assert len(result.flatten(1).unique(dim=0)) >= least


def test_one_operation_leaves_the_draws_of_another():
    images = random_images(64)
    every = Augment(0.5, 4, None, 0.1, 0.5)
    expected = sample_augmentation(generator(0), 64, 28, 28, 28, every, color_basis(images))
    flipped = sample_augmentation(generator(0), 64, 28, 28, 28, Augment(flip=0.5))
    assert torch.equal(flipped.window.mirrored, expected.window.mirrored)
    assert flipped.box is None
    erased = sample_augmentation(generator(0), 64, 28, 28, 28, Augment(erase=0.5))
    assert erased.window is None
    assert torch.equal(erased.box, expected.box)
    assert sample_augmentation(generator(0), 64, 28, 28, 28, NO_AUGMENTATION) == NO_CHANGES


def test_erased_boxes_keep_their_range():
    box = erase_boxes(torch.rand(2000, 5, generator=generator(0, "boxes")), 64, 0.5)
    sides = box[:, 2:] - box[:, :2]
    pixels = sides.prod(1)
    is_erased = pixels > 0
    assert box.min() >= 0
    assert box.max() <= 64
    assert abs(is_erased.float().mean() - 0.5) < 0.05
    area = pixels[is_erased] / 64**2
    aspect = (sides[:, 0] / sides[:, 1])[is_erased]
    assert 0.015 < area.min()
    assert area.min() < 0.03
    assert 0.38 < area.max()
    assert area.max() < 0.41
    assert 0.25 < aspect.min()
    assert aspect.min() < 0.35
    assert 2.9 < aspect.max()
    assert aspect.max() < 4
    erased = erase(torch.ones(100, 3, 64, 64), box[:100])
    assert torch.equal((erased == 0).sum((1, 2, 3)), 3 * pixels[:100])


def test_a_color_shift_has_the_standard_deviation_of_the_pixels():
    images = random_images(50, 3)
    images[:, 1] = images[:, 0]
    basis = color_basis(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    shift = sample_augmentation(generator(0), 500, 28, 28, 28, Augment(color=0.1), basis).shift
    torch.testing.assert_close(shift[:, 0], shift[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(shift.std(0), 0.1 * pixels.std(1).float(), atol=0, rtol=0.1)


def test_a_color_shift_is_drawn_along_each_principal_component():
    """As cuda-convnet2: 0.1 standard deviations of each component, and not of its variance."""
    images = random_images(50, 3)
    images[:, 1] = images[:, 0] // 2 + images[:, 1] // 2
    images[:, 2] = images[:, 2] // 8
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    variances, components = torch.linalg.eigh(pixels.cov())
    basis = color_basis(images)
    changes = sample_augmentation(generator(0), 20_000, 28, 28, 28, Augment(color=0.1), basis)
    drawn = changes.shift.double() @ components
    torch.testing.assert_close(drawn.std(0), 0.1 * variances.sqrt(), atol=0, rtol=0.02)
    assert (drawn.T.corrcoef() - torch.eye(3)).abs().max() < 0.03
    assert drawn.std(0).max() / drawn.std(0).min() > 5


def assert_uniform(draws, low, high):
    """Compares the quantiles with those of a uniform distribution."""
    shares = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    expected = low + (high - low) * shares
    actual = draws.double().quantile(shares)
    torch.testing.assert_close(actual, expected, atol=0.02 * (high - low), rtol=0)


def test_windows_are_drawn_uniformly():
    uniform = torch.rand(20_000, 11, generator=generator(0, "windows"))
    window = crop_windows(uniform, 300, 300, 224, Augment(scale=(1.143, 2.286)))
    assert_uniform(window.height, 256, 512)
    assert_uniform(window.top / (window.height - 224), 0, 1)
    assert_uniform(window.left / (window.width - 224), 0, 1)
    shifts = crop_windows(uniform, 32, 32, 32, Augment(crop=4)).left
    torch.testing.assert_close(
        (shifts + 4).bincount() / 20_000, torch.full((9,), 1 / 9), atol=0.01, rtol=0
    )


def test_erased_boxes_are_drawn_as_by_torchvision():
    box = erase_boxes(torch.rand(20_000, 5, generator=generator(0, "boxes")), 1000, 1)
    height, width = (box[:, 2:] - box[:, :2]).double().unbind(1)
    assert_uniform(height * width / 1000**2, 0.02, 0.4)
    assert_uniform((height / width).log(), -math.log(1 / 0.3), math.log(1 / 0.3))
    assert_uniform(box[:, 0] / (1001 - height), 0, 1)
    assert_uniform(box[:, 1] / (1001 - width), 0, 1)


def test_a_color_shift_needs_a_basis():
    with pytest.raises(ValueError, match="color_basis"):
        sample_augmentation(generator(0), 1, 28, 28, 28, Augment(color=0.1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_normalized_by_their_statistics(channels_last):
    images = random_images(20, 3)
    mean, std = channel_mean_std(images)
    result = Preprocess(28, mean, std, channels_last)(images)
    expected = torchvision.normalize(images / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(result, expected)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=order)


def test_black_is_added_before_normalization():
    images = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    changes = AugmentParams(window=same_window(Crop(8, 8, 0, 4), 1))
    result = Preprocess(8, torch.tensor([0.5]), torch.tensor([0.25]))(images, changes)
    assert result[0, 0, 0].tolist() == [2.0] * 4 + [-2.0] * 4


def test_flip_and_erase_are_drawn_independently():
    augment = Augment(flip=0.5, erase=0.5)
    changes = sample_augmentation(generator(0, "apart"), 1000, 8, 8, 8, augment)
    flipped = changes.window.mirrored > 0
    erased = changes.box[:, 2] > changes.box[:, 0]
    for is_flipped in (False, True):
        for is_erased in (False, True):
            count = ((flipped == is_flipped) & (erased == is_erased)).sum()
            assert count > 180


@pytest.mark.parametrize(
    ("height", "width", "size", "largest"),
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
def test_resize_matrices_give_the_pixels_of_torchs_kernel(height, width, size, largest):
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 2, height, width), dtype=torch.uint8, generator=draws)
    rows, columns = resize_matrices(height, width, size)
    resized = (images.float() @ columns + 0.5).floor()
    resized = (rows @ resized + 0.5).floor()
    difference = (resized - resize_center_crop(images, size).float()).abs()
    assert difference.max() <= largest
    assert (difference > 0).float().mean() < 0.003


def test_a_color_shift_is_added_before_normalization():
    images = random_images(2, 3)
    shift = torch.tensor([[0.1, 0.2, -0.3], [0, 0.4, 0]])
    mean = torch.tensor([0.4, 0.5, 0.6])
    std = torch.tensor([0.1, 0.2, 0.5])
    result = Preprocess(28, mean, std)(images, AugmentParams(shift=shift))
    expected = (images / 255 + shift[:, :, None, None] - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_every_scale_is_equally_likely():
    uniform = torch.linspace(0, 1, 101)[:, None].expand(-1, 11)
    window = crop_windows(uniform, 100, 100, 100, Augment(scale=(1, 2)))
    assert window.height.tolist() == list(range(100, 201))


# The ends of what torch.rand returns.
@pytest.mark.parametrize(("draw", "corner", "is_last"), [(0, 0, False), (1 - 2**-24, 60, True)])
def test_windows_and_boxes_reach_both_ends_of_an_image(draw, corner, is_last):
    draws = torch.full((1, 11), draw)
    draws[:, 0] = 0.6
    _, _, top, left, _ = crop_windows(draws, 100, 100, 100, Augment(scale=(1, 2)))
    assert (top.item(), left.item()) == (corner, corner)
    (box,) = erase_boxes(torch.tensor([[0, 0.5, 0.5, draw, draw]]), 64, 1).tolist()
    assert (box[2:] if is_last else box[:2]) == ([64, 64] if is_last else [0, 0])
