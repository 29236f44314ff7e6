"""python -m benchmarks.memory [--out FILE]: the memory of a training step, estimated and measured.

The estimate is that of `vggexp.plan` for the tensors. The second step of each configuration is
measured twice on the CPU: the tensors that torch's operators create, and everything that torch's
allocator hands out, with the workspaces that it gives to libraries. Neither is resident memory,
which `vggexp.plan` also estimates and tests/test_plan.py measures. Prints a table; --out writes
the table. About two minutes on two cores, and at most 6 GB.
"""

import argparse
import os
import platform
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vggexp.config import compose
from vggexp.config.derived import input_spec, tensor_bytes
from vggexp.config.schema import Config
from vggexp.cost_plan import plan_costs
from vggexp.runner import build
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system import cpu
from vggexp.training.loop import step_settings
from vggexp.training.step import NonFiniteGuard, optimizer_step

CASES = (
    "",
    "arch=vgg16 data.batch_size=32",
    "arch=vgg19 data.resize=32",
    "arch=vgg11_bn data.batch_size=32",
    "arch=vgg11_lrn data.batch_size=32",
    "optimizer=adam data.resize=32",
    "train.ema=0.999 data.resize=32",
    "train.accumulate=4 data.batch_size=64",
    "device.precision=bf16 data.batch_size=8",
    "arch=alexnet data.batch_size=64",
)  # overrides


class PeakMemory(NamedTuple):
    """Bytes of one configuration's step."""

    estimate: int
    tensors: int
    allocator: int


class TensorTracker(TorchDispatchMode):
    """Counts operators and the storages that they create, and tracks the bytes of live storages.

    Args:
        live: bytes that are live before the first operator.
    """

    def __init__(self, live: int = 0):
        super().__init__()
        self.created = 0
        self.live = live
        self.peak = live
        self.calls: Counter[str] = Counter()
        self._seen = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        inputs = set()
        for leaf in tree_leaves((arguments, named)):
            if isinstance(leaf, Tensor):
                inputs.add(leaf.untyped_storage())
        result = function(*arguments, **named)
        self.calls[str(function)] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in inputs:
                self._track(leaf.untyped_storage())
        return result

    def _track(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.created += 1
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._subtract, storage.nbytes())

    def _subtract(self, size: int) -> None:
        self.live -= size


def make_step(config: Config) -> tuple[Callable[[], None], Callable[[], int]]:
    """Returns two functions: one training step, and the bytes allocated between two steps.

    The bytes include the batch.
    """
    device_setup = setup_device(config)
    state = build.build_state(config, device_setup, 1)
    settings = build.train_settings(config, device_setup)
    spec = input_spec(config)
    images = torch.zeros(config.data.batch_size, spec.channels, spec.size, spec.size)
    labels = torch.zeros(len(images), dtype=torch.int64)
    guard = NonFiniteGuard(settings.device)

    def step() -> None:
        current = step_settings(state, settings, guard)
        loss, _ = settings.forward_backward(state.model, (images, labels), current)
        optimizer_step(state.model, state.optimizer, loss, 0, current)
        if state.ema is not None:
            state.ema.update(state.model)

    def allocated_bytes() -> int:
        content = [state.model.state_dict(), state.optimizer.state_dict(), images, labels]
        if state.ema is not None:
            content.append(state.ema.state_dict())
        return sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, Tensor))

    return step, allocated_bytes


def measure(config: Config) -> PeakMemory:
    step, allocated_bytes = make_step(config)
    step()  # creates the optimizer's state
    estimate = tensor_bytes(config)["total"] or 0
    tensors = tensor_peak(step, allocated_bytes())
    allocator = allocated_bytes() + allocator_peak(step)
    return PeakMemory(estimate, tensors, allocator)


def tensor_peak(step: Callable[[], None], live: int) -> int:
    with TensorTracker(live) as tracker:
        step()
    return tracker.peak


def allocator_peak(step: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    sizes = []
    for event in results.events():
        if event.name() == "[memory]":
            sizes.append((event.start_ns(), event.nbytes()))
    live = 0
    peak = 0
    for _, size in sorted(sizes):  # negative if freed
        live += size
        peak = max(peak, live)
    return peak


def compose_config(overrides: str) -> Config:
    return expand.compose_run(compose.parse_command(["device=cpu", *overrides.split()]))


def table_rows(cases: tuple[str, ...]) -> Iterator[str]:
    for overrides in cases:
        config = compose_config(overrides)
        peak = measure(config)
        name = overrides or "the default run"
        print(name, file=sys.stderr, flush=True)
        cells = [name, plan_costs(config).precision, f"{peak.estimate / 1e6:,.0f}"]
        for size in (peak.tensors, peak.allocator):
            error = peak.estimate / size - 1
            cells.append(f"{size / 1e6:,.0f}")
            cells.append(f"{100 * error:+.0f} %")
        yield "| " + " | ".join(cells) + " |"


def format_page(rows: Iterator[str]) -> str:
    table = "\n".join(rows)
    return f"""# The memory of a training step

MB at the peak of the second step on a CPU. "Estimate" is the value of `vggexp.plan` for the
tensors. "Tensors" is the output of torch's operators. "With workspaces" is all that torch's
allocator hands out, also inside an operator. "Off by" is the error of the estimate.

| configuration | format | estimate | tensors | off by | with workspaces | off by |
|---|---|---:|---:|---:|---:|---:|
{table}

`python -m benchmarks.memory` ({date.today()}), {os.cpu_count()} virtual cores of {cpu.cpu_model()};
Python {platform.python_version()}, torch {version("torch")}.
The default run is VGG-11 at 96 px, batch 128.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--case", action="append", help="overrides of a run, in quotes; may be repeated"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    page = format_page(table_rows(tuple(arguments.case or CASES)))
    print(page)
    if arguments.out:
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
