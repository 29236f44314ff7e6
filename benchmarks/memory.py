"""python -m benchmarks.memory [--out FILE]: the memory of a training step, as `vggexp.plan` tells it and as it is.

The second step of each configuration on the CPU, measured twice: the tensors that torch's operators make, which is what
the plan counts, and all that torch's allocator gives out meanwhile, with the workspaces that libraries take inside an
operator. Neither is resident memory, of which a process's libraries take several hundred MB and which keeps freed
pages. Prints a table; --out writes it. About two minutes on two cores, and 6 GB at most.
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

from vggexp import plan
from vggexp.config import compose
from vggexp.config.derived import input_spec
from vggexp.config.schema import Config
from vggexp.runner import build
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system import cpu
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
)


class Peak(NamedTuple):
    """Bytes of one configuration's step."""

    estimate: int
    tensors: int
    allocator: int


class Tensors(TorchDispatchMode):
    """Counts operators, and follows the storages they make: how many, and the most bytes that lived at a time."""

    def __init__(self, held: int = 0):
        super().__init__()
        self.made = 0
        self.live = held
        self.peak = held
        self.calls: Counter[str] = Counter()
        self._seen = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = {
            leaf.untyped_storage()
            for leaf in tree_leaves((arguments, named))
            if isinstance(leaf, Tensor)
        }
        result = function(*arguments, **(named or {}))
        self.calls[str(function)] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in given:
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.made += 1
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.live -= size


def stepping(config: Config) -> tuple[Callable[[], None], Callable[[], int]]:
    """A call that makes one training step, and one that tells the bytes held between two steps, with the batch."""
    hardware = setup_device(config)
    state = build.build_state(config, hardware, 1)
    fixed = build.train_settings(config, hardware)
    given = input_spec(config)
    images = torch.zeros(config.data.batch_size, given.channels, given.size, given.size)
    labels = torch.zeros(len(images), dtype=torch.int64)
    guard = NonFiniteGuard(fixed.device)

    def step() -> None:
        loss, _ = fixed.gradients(
            state.model,
            state.scaler,
            guard,
            images,
            labels,
            batch_size=fixed.batch_size,
            micro_batches=state.micro_batches,
            label_smoothing=fixed.label_smoothing,
            autocast=fixed.autocast,
        )
        optimizer_step(state.model, state.optimizer, state.scaler, guard, 0, loss, fixed.clip_norm)
        if state.ema is not None:
            state.ema.update(state.model)

    def held() -> int:
        parts = tree_leaves(
            [state.model.state_dict(), state.optimizer.state_dict(), images, labels]
        )
        parts += tree_leaves(state.ema.state_dict()) if state.ema is not None else []
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    return step, held


def measured(config: Config) -> Peak:
    step, held = stepping(config)
    step()  # makes the optimizer's state
    estimate = plan.plan_costs(config).memory_bytes["total"] or 0
    return Peak(estimate, of_tensors(step, held()), held() + of_allocator(step))


def of_tensors(step: Callable[[], None], held: int) -> int:
    with Tensors(held) as tensors:
        step()
    return tensors.peak


def of_allocator(step: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    )
    live = peak = 0
    for _, size in events:  # freed: negative
        live += size
        peak = max(peak, live)
    return peak


def configured(words: str) -> Config:
    return expand.compose_run(compose.parse_command(["device=cpu", *words.split()]))


def rows(cases: tuple[str, ...]) -> Iterator[str]:
    for words in cases:
        config = configured(words)
        peak = measured(config)
        print(words or "the default run", file=sys.stderr, flush=True)
        cells = [
            words or "the default run",
            plan.plan_costs(config).precision,
            f"{peak.estimate / 1e6:,.0f}",
        ]
        for found in (peak.tensors, peak.allocator):
            cells += [f"{found / 1e6:,.0f}", f"{100 * (peak.estimate / found - 1):+.0f} %"]
        yield "| " + " | ".join(cells) + " |"


def record(lines: Iterator[str]) -> str:
    table = "\n".join(lines)
    return f"""# The memory of a training step

MB at the peak of the second step on a CPU. "Estimate" is the value of `vggexp.plan`. "Tensors" is
the output of torch's operators. "With workspaces" is all that torch's allocator hands out, also
inside an operator. "Off by" is the error of the estimate.

| configuration | format | estimate | tensors | off by | with workspaces | off by |
|---|---|---:|---:|---:|---:|---:|
{table}

`python -m benchmarks.memory` ({date.today()}), {os.cpu_count()} virtual cores of {cpu.cpu_model()}; Python
{platform.python_version()}, torch {version("torch")}. The default run is VGG-11 at 96 px, batch 128.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--case", action="append", help="overrides of a run, in one word; may be given again"
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    page = record(rows(tuple(asked.case or CASES)))
    print(page)
    if asked.out:
        asked.out.write_text(page)


if __name__ == "__main__":
    main()
