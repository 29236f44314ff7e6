"""The kernels against torch's operators: in fp32 in Triton's interpreter, in bf16 on a GPU."""

import json
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional

from vggexp.models.shapes import Block
from vggexp.models.vgg import fuse, vgg_stack

pytest.importorskip("triton")


class Case(NamedTuple):
    images: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    pool: int  # size of the pooling window
    kernel: int  # size of the convolution's kernel


CASES = [
    Case(3, 1, 20, 8, 6, 2, 3),
    Case(2, 3, 70, 7, 9, 2, 3),
    Case(2, 3, 16, 6, 6, 1, 3),
    Case(2, 5, 33, 8, 8, 2, 3),
    Case(2, 5, 33, 7, 5, 2, 1),
    Case(2, 16, 64, 6, 6, 1, 3),
]
LARGE_CASES = [Case(64, 1, 64, 96, 96, 2, 3), Case(16, 3, 64, 224, 224, 1, 3)]
CHECK = "from tests.models.test_triton_ops import CASES, errors; import json, torch; "
CHECK += "print(json.dumps([errors(case, torch.float32, 'cpu') for case in CASES]))"


def errors(case: Case, dtype: torch.dtype, device: str) -> list[float]:
    """Returns the relative errors of the result and of each gradient, against fp64."""
    from vggexp.models.triton_ops import convolution

    torch.manual_seed(0)
    images = torch.randn(case.images, case.in_channels, case.height, case.width, device=device)
    weight = torch.randn(
        case.out_channels, case.in_channels, case.kernel, case.kernel, device=device
    )
    bias = torch.randn(case.out_channels, device=device)
    rounded = [
        images.to(memory_format=torch.channels_last).to(dtype),
        weight.to(dtype),
        bias.to(dtype),
    ]
    arguments = [tensor.float() for tensor in rounded]
    exact_arguments = [tensor.double() for tensor in rounded]
    first = 1 if case.in_channels <= 3 else 0  # the images of a first convolution get no gradient
    for tensor in (*arguments[first:], *exact_arguments[first:]):
        tensor.requires_grad_()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        result = convolution(*arguments, case.pool)
    maps = functional.conv2d(*exact_arguments, padding=case.kernel // 2)
    exact_result = functional.relu(functional.max_pool2d(maps, case.pool))
    gradient = torch.randn(exact_result.shape, device=device).to(dtype)
    actual = torch.autograd.grad(result, arguments[first:], gradient.to(result.dtype))
    expected = torch.autograd.grad(exact_result, exact_arguments[first:], gradient.double())
    assert result.is_contiguous(memory_format=torch.channels_last)
    pairs = zip((result, *actual), (exact_result, *expected), strict=True)
    return [((value - exact).norm() / exact.norm()).item() for value, exact in pairs]


@pytest.mark.process
def test_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    process = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for case, case_errors in zip(CASES, json.loads(process.stdout), strict=True):
        assert max(case_errors) < 1e-6, case


@pytest.mark.cuda
@pytest.mark.parametrize("case", [*CASES, *LARGE_CASES], ids=lambda case: "-".join(map(str, case)))
def test_on_a_gpu(case):
    assert max(errors(case, torch.bfloat16, "cuda")) < 0.01


def run_stack(model, images):
    """Returns the result in bf16, and the gradients of the weights."""
    with torch.autocast("cuda", torch.bfloat16):
        result = model(images)
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    return [result, *torch.autograd.grad(result.float().square().sum(), weights)]


@pytest.mark.cuda
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_stack_of_fused_blocks(norm):
    stack = vgg_stack([Block(1, 64), Block(2, 96)], 3, norm).cuda()
    stack = stack.to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 32, 32, device="cuda")
    plain = run_stack(stack, images)
    fuse(stack)
    fused = run_stack(stack, images)
    # Without batch norm the kernel adds the bias before the rounding.
    assert torch.equal(plain[0], fused[0]) == (norm == "batch")
    for expected, actual in zip(plain, fused, strict=True):
        assert (expected - actual).norm() < 0.03 * expected.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("in_channels", [1, 8])
def test_nan_stays(in_channels):
    from vggexp.models.triton_ops import convolution

    images = torch.ones(1, in_channels, 4, 4, device="cuda")
    weight = torch.ones(16, in_channels, 3, 3, device="cuda")
    images[0, 0, 1, 1] = float("nan")
    with torch.autocast("cuda", torch.bfloat16):
        assert convolution(images, weight, torch.zeros(16, device="cuda"), 2).isnan().all()
