"""What a step and a start cost, in counts and not in seconds: a count is the same on a busy machine."""

import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import Tensors
from tests.conftest import TINY
from vggexp.bench.measure import NullCheckpointer
from vggexp.data.loaders import InMemoryLoader
from vggexp.data.transforms import Preprocess
from vggexp.loggers.run_logger import NullLogger
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.system.signals import StopFlag
from vggexp.training import precision
from vggexp.training.ema import EMA
from vggexp.training.loop import TrainSettings, TrainState, train_epoch
from vggexp.training.metrics import MetricSums
from vggexp.training.schedules import build_schedule
from vggexp.training.step import NonFiniteGuard
from vggexp.training.timer import PhaseTimer

CPU = torch.device("cpu")
READS = "aten._local_scalar_dense.default"  # the host waits for a number of the device


class Calls(TorchDispatchMode):
    """Counts the operators that are called while it is entered."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.calls[str(function)] += 1
        return function(*arguments, **(named or {}))


def loop(kind: str, images: int, fused: bool = True):
    """A call that makes an epoch in batches of 32, as on an accelerator, with all that the loop does around a step."""
    model = vgg(
        [Block(1, 4), Block(2, 8)],
        norm="none",
        hidden=(16,),
        dropout=0.5,
        width=1,
        in_channels=1,
        size=8,
        classes=4,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)
    guard, course = (
        NonFiniteGuard(CPU),
        build_schedule("constant", 0.1, 0, epochs=9, steps_per_epoch=9),
    )
    guard.on_cpu = False  # there the flag is read at once
    state = TrainState(
        model, optimizer, course, precision.scaler(kind, CPU), EMA(model, 0.9), MetricSums(CPU)
    )
    plan = TrainSettings(
        CPU, 0, 9, 32, 0.0, None, None, 0.0, partial(precision.autocast_context, kind, CPU)
    )
    pictures, labels = (
        torch.zeros(images, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(images, dtype=torch.int64),
    )
    batches = InMemoryLoader(pictures, labels, Preprocess(8, None, None), batch_size=32, device=CPU)

    def epoch() -> None:
        state.batch = 0
        train_epoch(
            state,
            batches,
            plan,
            PhaseTimer(CPU),
            guard,
            NullLogger(),
            NullCheckpointer(),
            StopFlag(),
        )

    epoch()  # makes the optimizer's state
    return epoch


def of_epoch(count: TorchDispatchMode, *words) -> TorchDispatchMode:
    epoch = loop(*words)
    with count:
        epoch()
    return count


def a_step(kind: str, fused: bool = True) -> Counter[str]:
    """The operators by which an epoch of three steps has more than one of two."""
    three, two = (of_epoch(Calls(), kind, images, fused).calls for images in (96, 64))
    return three - two


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_an_epoch_waits_for_the_device_once(kind, fused):
    assert a_step(kind, fused)[READS] == 0
    assert (
        of_epoch(Calls(), kind, 64, fused).calls[READS] == 1
    )  # at its end, whether a step was bad


@pytest.mark.parametrize(
    ("kind", "most"), [("fp32", 112), ("bf16", 135)]
)  # one is a view: a rank's share
def test_a_step_calls_no_more_operators_than_it_did(kind, most):
    calls = a_step(kind)
    assert calls.total() <= most, calls


@pytest.mark.parametrize(("kind", "most"), [("fp32", 70), ("bf16", 93)])
def test_a_step_makes_no_more_tensors_than_it_did(kind, most):
    three, two = (of_epoch(Tensors(), kind, images) for images in (96, 64))
    assert three.made - two.made <= most
    assert three.live <= 0  # nothing of an epoch is left but what took the place of something else


def test_a_run_loads_nothing_that_it_does_not_use(tmp_path):
    code = "import sys; from vggexp.__main__ import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    ended = subprocess.run(
        [sys.executable, "-c", code, *TINY], capture_output=True, text=True, cwd=tmp_path
    )
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert ended.returncode == 0 and "torch" in loaded
    assert not loaded & {
        "torchvision",
        "sklearn",
        "scipy",
        "matplotlib",
        "pandas",
        "tensorflow",
        "torch._dynamo",
    }
