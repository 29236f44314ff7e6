"""Statistics of pixels, compared with torch's own in float64."""

import gzip
from pathlib import Path

import numpy
import pytest
import torch

from vggexp.data.image_stats import channel_mean_std, color_basis

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


@pytest.fixture
def images():
    """Images of three channels, of which two are equal: their covariance is singular."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 28, 28), dtype=torch.uint8, generator=draws)
    images[:, 1] = images[:, 0]
    return images


def test_mean_and_standard_deviation(images):
    mean, std = channel_mean_std(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0))


def test_the_standard_deviation_of_black_images_is_one():
    _, std = channel_mean_std(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert std == 1


def test_the_color_basis_is_the_root_of_the_covariance(images):
    basis = color_basis(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    covariance = pixels.cov(correction=0)
    torch.testing.assert_close((basis @ basis).double(), covariance, atol=1e-6, rtol=0)


def test_the_color_basis_of_one_channel_is_the_standard_deviation(images):
    _, std = channel_mean_std(images[:, :1])
    torch.testing.assert_close(color_basis(images[:, :1]).flatten(), std)


@pytest.mark.debian
def test_statistics_of_fashion_mnist():
    pixels = numpy.frombuffer(gzip.decompress(FASHION_MNIST.read_bytes()), numpy.uint8, offset=16)
    images = torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)
    mean, std = channel_mean_std(images)
    assert (round(mean.item(), 5), round(std.item(), 5)) == (0.28604, 0.35302)
