"""The kernels against torch's operators: in fp32 by Triton's interpreter, in bf16 on a GPU."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from vggexp.models.shapes import Block
from vggexp.models.vgg import fuse, vgg_stack

pytest.importorskip("triton")

# images, channels in and out, height, width, window of the pooling, kernel of the convolution
CASES = [
    (3, 1, 20, 8, 6, 2, 3),
    (2, 3, 70, 7, 9, 2, 3),
    (2, 3, 16, 6, 6, 1, 3),
    (2, 5, 33, 8, 8, 2, 3),
    (2, 5, 33, 7, 5, 2, 1),
    (2, 16, 64, 6, 6, 1, 3),
]
CHECK = "from tests.models.test_triton_ops import CASES, errors; import json, torch; "
CHECK += "print(json.dumps([errors(case, torch.float32, 'cpu') for case in CASES]))"


def errors(case: tuple[int, ...], kind: torch.dtype, device: str) -> list[float]:
    """Of the result and of each gradient, relative, against fp64."""
    from vggexp.models.triton_ops import convolution

    count, depth, channels, height, width, pool, kernel = case
    torch.manual_seed(0)
    images = torch.randn(count, depth, height, width, device=device).to(
        memory_format=torch.channels_last
    )
    given = [
        images,
        torch.randn(channels, depth, kernel, kernel, device=device),
        torch.randn(channels, device=device),
    ]
    learnt = given[1:] if depth <= 3 else given
    given, exact = (
        [tensor.to(kind).float() for tensor in given],
        [tensor.to(kind).double() for tensor in given],
    )
    for tensor in [*given[-len(learnt) :], *exact[-len(learnt) :]]:
        tensor.requires_grad_()
    with torch.autocast(device, kind, enabled=kind != torch.float32):
        result = convolution(*given, pool)
    expected = functional.relu(
        functional.max_pool2d(functional.conv2d(*exact, padding=kernel // 2), pool)
    )
    gradient = torch.randn(expected.shape, device=device).to(kind)
    ours = [result, *torch.autograd.grad(result, given[-len(learnt) :], gradient.to(result.dtype))]
    theirs = [expected, *torch.autograd.grad(expected, exact[-len(learnt) :], gradient.double())]
    assert result.is_contiguous(memory_format=torch.channels_last)
    return [
        ((one - other).norm() / other.norm()).item()
        for one, other in zip(ours, theirs, strict=True)
    ]


def test_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    end = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert all(error < 1e-6 for case in json.loads(end.stdout) for error in case)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "case", [*CASES, (64, 1, 64, 96, 96, 2, 3), (16, 3, 64, 224, 224, 1, 3)], ids=str
)
def test_on_a_gpu(case):
    assert max(errors(case, torch.bfloat16, "cuda")) < 0.01


@pytest.mark.cuda
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_network_of_fused_blocks(norm):
    model = (
        vgg_stack([Block(1, 64), Block(2, 96)], 3, norm)
        .cuda()
        .to(memory_format=torch.channels_last)
    )
    images, found = torch.randn(16, 3, 32, 32, device="cuda"), []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            result = model(images)
        weights = [weight for weight in model.parameters() if weight.ndim > 1]
        found.append([result, *torch.autograd.grad(result.float().square().sum(), weights)])
        fuse(model)
    assert torch.equal(found[0][0], found[1][0]) == (
        norm == "batch"
    )  # the bias is added before the rounding
    assert all((one - other).norm() < 0.03 * one.norm() for one, other in zip(*found, strict=True))


@pytest.mark.cuda
def test_what_is_not_a_number_stays():
    for depth in (1, 8):
        images, weight = (
            torch.ones(1, depth, 4, 4, device="cuda"),
            torch.ones(16, depth, 3, 3, device="cuda"),
        )
        images[0, 0, 1, 1] = float("nan")
        from vggexp.models.triton_ops import convolution

        with torch.autocast("cuda", torch.bfloat16):
            assert convolution(images, weight, torch.zeros(16, device="cuda"), 2).isnan().all()
