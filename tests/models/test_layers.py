"""Our batch norm and our pooling against torch's, and what the pooling keeps for backward."""

import pytest
import torch
from torch import nn

from vggexp.models.layers import (
    MAX_TORCH_VALUES,
    BatchNorm2d,
    MaxPool2d,
    channel_statistics,
    smallest_divisor,
    synchronize,
)

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


@pytest.mark.catalog
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


def make_images(shape, dtype=torch.float32):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = (1.3 * images + 0.4).relu().to(dtype)
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(128, 8, 28, 28), (127, 3, 29, 31), (32, 64, 48, 48), (40, 1500, 7, 7)], ids=str
)
def test_statistics_have_the_digits_of_fp32(shape, dtype):
    images = make_images(shape, dtype)
    variance, mean = torch.var_mean(images.double(), (0, 2, 3), correction=0)
    exact_mean, exact_variance = channel_statistics(images)
    torch.testing.assert_close(exact_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(exact_variance.double(), variance, rtol=5e-6, atol=0)


def batch_norm_results(norm, images):
    """Returns output, gradients and running mean and variance in fp64."""
    images = images.detach().requires_grad_()
    normalized = norm(images)
    weights = torch.linspace(-1, 1, normalized[0].numel(), dtype=torch.float64)
    (normalized.double().sin() * weights.view(normalized[0].shape)).sum().backward()
    results = [normalized, images.grad, norm.weight.grad, norm.bias.grad]
    results += [norm.running_mean, norm.running_var]
    return [result.detach().double() for result in results]


def largest_error(results, exact):
    errors = [
        (actual - expected).norm() / expected.norm()
        for actual, expected in zip(results, exact, strict=True)
    ]
    return float(max(errors))


def test_batch_norm_of_large_batches_is_exact_on_a_cpu():
    images = make_images((128, 8, 48, 48))
    exact = batch_norm_results(nn.BatchNorm2d(8).double(), images.double())
    assert largest_error(batch_norm_results(BatchNorm2d(8), images), exact) < 2e-6
    # torch's own kernel: if this fails, torch has changed and ours may go.
    assert largest_error(batch_norm_results(nn.BatchNorm2d(8), images), exact) > 1e-4


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [16, 17])
def test_where_batch_norm_is_torchs_to_the_bit(size, memory_format):
    images = make_images((128, 8, size, size)).contiguous(memory_format=memory_format)
    results = batch_norm_results(BatchNorm2d(8), images)
    torch_results = batch_norm_results(nn.BatchNorm2d(8), images)
    is_large = 128 * size**2 > MAX_TORCH_VALUES
    is_equal = all(map(torch.equal, results, torch_results))
    assert is_equal == (not is_large or memory_format == torch.contiguous_format)


def test_batch_norm_keeps_bf16_and_its_memory_format():
    images = make_images((64, 8, 32, 32), torch.bfloat16).requires_grad_()
    normalized = BatchNorm2d(8)(images)
    normalized.sum().backward()
    for tensor in (normalized, images.grad):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_frozen_weight_gets_no_gradient():
    norm = BatchNorm2d(8).requires_grad_(False)
    images = make_images((64, 8, 32, 32)).requires_grad_()
    norm(images).sum().backward()
    assert norm.weight.grad is None
    assert images.grad is not None


@pytest.mark.parametrize(
    ("number", "least", "divisor"), [(12, 0, 1), (12, 4, 4), (12, 5, 6), (12, 20, 12), (7, 2, 7)]
)
def test_smallest_divisor(number, least, divisor):
    assert smallest_divisor(number, least) == divisor
