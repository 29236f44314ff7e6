"""Our pooling against torch's, and what each keeps for the backward pass."""

from itertools import product

import pytest
import torch
from torch import nn

from vggexp.models.layers import MaxPool2d

SHAPES = [
    (4, 16, 12, 12),
    (3, 8, 9, 7),
    (2, 1, 8, 8),
    (2, 8, 3, 3),
    (0, 4, 8, 8),
]  # the last: a rank without images
FORMATS = [torch.contiguous_format, torch.channels_last]


def pooled(pool, images):
    maxima = pool(images)
    gradient = (
        torch.arange(maxima.numel(), device=images.device).view(maxima.shape).to(maxima.dtype)
    )
    return maxima, torch.autograd.grad(maxima, images, gradient)[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_it_is_torchs_to_the_bit(window, device):
    for shape, memory_format, dtype in product(SHAPES, FORMATS, (torch.float32, torch.bfloat16)):
        images = (
            torch.randn(shape).to(device, dtype).relu().contiguous(memory_format=memory_format)
        )  # with equal zeros
        images.requires_grad_()
        for ours, torchs in zip(
            pooled(MaxPool2d(*window), images), pooled(nn.MaxPool2d(*window), images), strict=True
        ):
            assert torch.equal(ours, torchs) and ours.stride() == torchs.stride()


@pytest.mark.parametrize(
    ("pool", "kept"), [(MaxPool2d, [torch.int64]), (nn.MaxPool2d, [torch.float32, torch.int64])]
)
def test_what_is_kept(pool, kept):
    saved = []
    images = torch.ones(2, 3, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.dtype), lambda _: None
    ):
        pool(2)(images)
    assert saved == kept


def test_compiled_it_is_torchs():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    compiled = torch.compile(MaxPool2d(2), backend="aot_eager", fullgraph=True)
    for ours, torchs in zip(pooled(compiled, images), pooled(nn.MaxPool2d(2), images), strict=True):
        assert torch.equal(ours, torchs)
