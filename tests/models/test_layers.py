"""Our batch norm and our pooling against torch's, and what the pooling keeps for backward."""

import pytest
import torch
from torch import nn

from vggexp.models.layers import BatchNorm2d, MaxPool2d, synchronize

SHAPES = [
    (4, 16, 12, 12),
    (3, 8, 9, 7),
    (2, 1, 8, 8),
    (2, 8, 3, 3),
    (0, 4, 8, 8),  # a rank without images
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16]


def forward_and_backward(pool, images):
    maxima = pool(images)
    count = torch.arange(maxima.numel(), device=images.device)
    gradient = count.view(maxima.shape).to(maxima.dtype)
    return maxima, torch.autograd.grad(maxima, images, gradient)[0]


def assert_equal_to_torch(pool, torch_pool, images):
    results = forward_and_backward(pool, images)
    torch_results = forward_and_backward(torch_pool, images)
    for actual, expected in zip(results, torch_results, strict=True):
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [(2, 2), (3, 2)], ids=str)
def test_pooling_is_torchs_to_the_bit(window, shape, memory_format, dtype, device):
    images = torch.randn(shape).to(device, dtype).relu()  # the zeros are equal maxima
    images = images.contiguous(memory_format=memory_format).requires_grad_()
    assert_equal_to_torch(MaxPool2d(*window), nn.MaxPool2d(*window), images)


@pytest.mark.parametrize(
    ("pool", "dtypes"), [(MaxPool2d, [torch.int64]), (nn.MaxPool2d, [torch.float32, torch.int64])]
)
def test_what_pooling_keeps(pool, dtypes):
    saved = []
    images = torch.ones(2, 3, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.dtype), lambda _: None
    ):
        pool(2)(images)
    assert saved == dtypes


def test_compiled_pooling_is_torchs():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    compiled = torch.compile(MaxPool2d(2), backend="aot_eager", fullgraph=True)
    results = forward_and_backward(compiled, images)
    torch_results = forward_and_backward(nn.MaxPool2d(2), images)
    for actual, expected in zip(results, torch_results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("synchronized", [True, False])
def test_batch_norm_on_one_rank_is_torchs(synchronized, training):
    norm = BatchNorm2d(3).train(training)
    torch_norm = nn.BatchNorm2d(3).train(training)
    if synchronized:
        synchronize(nn.Sequential(norm))
    images = torch.randn(5, 3, 4, 4) * 2 + 5
    torch.testing.assert_close(norm(images), torch_norm(images))
    for name, buffer in torch_norm.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer)
