"""The cost of a step and of a start in counts, which are the same on a busy machine."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import TensorTracker
from tests.conftest import TINY
from tests.factories import CPU, make_loop, make_model, make_state
from vggexp.data.loaders import InMemoryLoader
from vggexp.data.transforms import Preprocess
from vggexp.models.shapes import Block
from vggexp.training import precision
from vggexp.training.loop import train_epoch

WAIT = "aten._local_scalar_dense.default"  # the host waits for a value of the device
TORCH = "2.14"  # version of torch that the two tables below were recorded with
MAX_OPERATORS = {"fp32": 112, "bf16": 135}  # per step; one of them is the view of a rank's share
MAX_TENSORS = {"fp32": 70, "bf16": 93}  # made per step


class Operators(TorchDispatchMode):
    """Counts the operators that are called inside the context."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.calls[str(function)] += 1
        return function(*arguments, **(keywords or {}))


def make_epoch(
    dtype: str, images: int, fused: bool = True, log_steps: int = 0
) -> Callable[[], None]:
    """Returns a call that trains an epoch in batches of 32 as on an accelerator.

    The epoch has everything that the loop does around a step.
    """
    model = make_model(blocks=[Block(1, 4), Block(2, 8)], dropout=0.5, size=8)
    optimizer = partial(torch.optim.SGD, momentum=0.9, fused=fused)
    state = make_state(model, optimizer, ema_decay=0.9, precision=dtype)
    autocast = partial(precision.autocast_context, dtype, CPU)
    loop = make_loop(batch_size=32, autocast=autocast, log_steps=log_steps)
    loop.guard.on_cpu = False  # on the CPU the flag is read in every step
    batches = InMemoryLoader(
        torch.zeros(images, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(images, dtype=torch.int64),
        Preprocess(8, None, None),
        batch_size=32,
        device=CPU,
    )

    def epoch() -> None:
        state.batch = 0
        train_epoch(state, batches.train(0), loop)

    epoch()  # creates the state of the optimizer
    return epoch


def count_epoch(counter, dtype: str, images: int, fused: bool = True, log_steps: int = 0):
    epoch = make_epoch(dtype, images, fused, log_steps)
    with counter:
        epoch()
    return counter


def operators_of_step(dtype: str, fused: bool = True) -> Counter[str]:
    """Returns the operators of an epoch of three steps that an epoch of two does not have."""
    three_steps = count_epoch(Operators(), dtype, 96, fused)
    two_steps = count_epoch(Operators(), dtype, 64, fused)
    return three_steps.calls - two_steps.calls


@pytest.mark.catalog
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_epoch_waits_for_the_device_once(dtype, fused):
    assert operators_of_step(dtype, fused)[WAIT] == 0
    # The one wait is at the end of the epoch and finds out whether a step was not finite.
    assert count_epoch(Operators(), dtype, 64, fused).calls[WAIT] == 1


def test_a_step_between_two_points_of_the_curves_costs_nothing():
    with_points = count_epoch(Operators(), "fp32", 128, log_steps=100).calls
    assert with_points == count_epoch(Operators(), "fp32", 128).calls


def test_a_point_of_the_curves_does_not_wait_for_values_one_by_one():
    """All values of a point are read at once, which is no operator on the CPU."""
    with_points = count_epoch(Operators(), "fp32", 128, log_steps=1).calls
    assert with_points[WAIT] == count_epoch(Operators(), "fp32", 128).calls[WAIT]


@pytest.mark.parametrize("dtype", MAX_OPERATORS)
def test_a_step_calls_no_more_operators_than_recorded(dtype):
    calls = operators_of_step(dtype)
    assert calls.total() <= MAX_OPERATORS[dtype], f"torch {TORCH} -> {torch.__version__}: {calls}"


@pytest.mark.parametrize("dtype", MAX_TENSORS)
def test_a_step_makes_no_more_tensors_than_recorded(dtype):
    three_steps = count_epoch(TensorTracker(), dtype, 96)
    two_steps = count_epoch(TensorTracker(), dtype, 64)
    made = three_steps.created - two_steps.created
    assert made <= MAX_TENSORS[dtype], f"torch {TORCH} -> {torch.__version__}"
    assert three_steps.live <= 0  # an epoch leaves only tensors that replace others


RUN = "import sys; from vggexp.__main__ import main; "
RUN += "code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"


@pytest.mark.process
def test_a_run_imports_nothing_that_it_does_not_use(tmp_path):
    command = [sys.executable, "-c", RUN, *TINY]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    modules = set(process.stdout.splitlines()[-1].split())
    unused = {
        "torchvision",
        "sklearn",
        "scipy",
        "matplotlib",
        "pandas",
        "tensorflow",
        "torch._dynamo",
    }
    assert "torch" in modules
    assert not modules & unused
