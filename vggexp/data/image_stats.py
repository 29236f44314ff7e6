"""Computes mean, standard deviation and covariance of the pixels of a data set."""

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 20  # values summed at once: small enough for the cache


def channel_mean_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation [C] of the channels, for pixels of 0..1.

    A standard deviation of 0 is returned as 1.

    Args:
        images: uint8 [N, C, H, W] on the CPU.
    """
    mean, covariance = _mean_and_covariance(images)
    std = covariance.diagonal().sqrt()
    std = torch.where(std > 0, std, 1)
    return mean.float(), std.float()


def color_basis(images: Tensor) -> Tensor:
    """Returns the square root [C, C] of the colors' covariance.

    Normal draws times the basis vary as the pixels of 0..1 do. They are shifts along the principal
    components, each in units of its standard deviation. With one channel they change the
    brightness.

    Source: Krizhevsky et al. 2012, section 4.1. Its text multiplies by the eigenvalue, a variance,
    whose size depends on the unit of the pixels: for pixels of 0..255, a tenth of the first one is
    1,000 to 2,000. The author's program cuda-convnet2 (convdata.py, `pca_stdevs`) multiplies by the
    standard deviation, as here. It then divides the image by 1.1, which is not done here.
    """
    _, covariance = _mean_and_covariance(images)
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp(min=0).sqrt()
    basis = (vectors * roots) @ vectors.T
    return basis.float()


def _mean_and_covariance(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean [C] and covariance [C, C], float64, from exact sums: integers below 2^53."""
    channels = images.shape[1]
    pixels = images.shape[2] * images.shape[3]
    total = torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    chunk = max(1, CHUNK_VALUES // (channels * pixels))
    for values in images.flatten(2).split(chunk):
        values = values.double()
        total += values.sum((0, 2))
        products += (values @ values.mT).sum(0)
    count = len(images) * pixels
    mean = total / count
    covariance = products / count - mean.outer(mean)
    return mean / 255, covariance / 255**2
