"""What a step and a start cost, in counts and not in seconds: a count is the same on a busy machine."""

import contextlib
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import TINY
from vggexp import precision
from vggexp.data.batches import Resident
from vggexp.data.transforms import Preprocess
from vggexp.ema import Ema
from vggexp.metrics import Sums
from vggexp.models.vgg import vgg
from vggexp.shapes import Block
from vggexp.step import Guard, gradients, update

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


def one_step(kind: str, fused: bool = True) -> Counter[str]:
    """The operators of a training step with its data and moving average, as on an accelerator."""
    net = vgg(
        [Block(1, 4), Block(2, 8)], norm="none", hidden=(16,), dropout=0.5, width=1, in_channels=1, size=8, classes=4
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=fused)
    guard, sums, ema, scaler = Guard(CPU), Sums(CPU), Ema(net, 0.9), precision.scaler(kind, CPU)
    guard.on_cpu = False  # there the flag is read at once
    images, labels = torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    batches = Resident(images, labels, Preprocess(8, None, None), batch_size=32, device=CPU).train(0)
    calls = Calls()
    for step, (pictures, truth) in enumerate(batches):
        with calls if step else contextlib.nullcontext():  # the first step makes the optimizer's state
            loss, logits = gradients(
                net, scaler, guard, pictures, truth, batch_size=32, micro_batches=1, label_smoothing=0.0,
                autocast=partial(precision.autocast, kind, CPU),
            )  # fmt: skip
            sums.add(loss, logits, truth)
            update(net, optimizer, scaler, guard, step, loss, None)
            ema.update(net)
    return calls.calls


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_nothing_in_a_step_waits_for_the_device(kind, fused):
    assert one_step(kind, fused)[READS] == 0


@pytest.mark.parametrize(("kind", "most"), [("fp32", 112), ("bf16", 135)])
def test_a_step_calls_no_more_operators_than_it_did(kind, most):
    calls = one_step(kind)
    assert calls.total() <= most, calls


def test_a_run_loads_nothing_that_it_does_not_use(tmp_path):
    code = (
        "import sys; from vggexp.__main__ import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *TINY], capture_output=True, text=True, cwd=tmp_path)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert ended.returncode == 0 and "torch" in loaded
    assert not loaded & {"torchvision", "sklearn", "scipy", "matplotlib", "pandas", "tensorflow"}
