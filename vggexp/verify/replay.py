"""The last stretch of a run once more, compared bit by bit; for vggexp.verify."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.errors import CheckpointError
from vggexp.loggers.console import Console
from vggexp.loggers.run_logger import NullLogger
from vggexp.runner import build
from vggexp.runner.job import evaluate_epoch
from vggexp.runner.resume import build_run
from vggexp.runs.directory import read_config
from vggexp.runs.records import load_config
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint
from vggexp.training.checkpoint_manager import find_checkpoints
from vggexp.training.loop import TrainState, train
from vggexp.training.timer import PhaseTimer


class ReachedError(Exception):
    """The training has come to the later checkpoint."""


class StopAtStep:
    """Stands in for the folder of checkpoints, and ends the training where the later one was written."""

    def __init__(self, state: TrainState, later: Mapping[str, Any]):
        self.state = state
        self.place = (later["epoch"], later["batch"])

    def due(self) -> bool:
        return (self.state.epoch, self.state.batch) == self.place

    def save(self, state: TrainState) -> None:
        if self.due():
            raise ReachedError


def replay(folder: Path) -> dict[str, Any]:
    """identical, the steps compared, how many tensors, and the first that differs. Raises CheckpointError."""
    later, earlier = (checkpoint.load(path) for path in _last_two(folder))
    if (ranks := later.get("processes", 1)) > 1:
        raise CheckpointError(
            f"{folder}: trained by {ranks} processes, whose sums one process does not repeat bit by bit"
        )
    config = load_config(folder)
    console = Console(None, sys.stderr)
    hardware, data, state = build_run(config, earlier, console)
    measure = partial(evaluate_epoch, config=config, hardware=hardware, data=data, console=console)
    with contextlib.suppress(ReachedError):
        target = StopAtStep(state, later)
        plan = build.train_settings(config, hardware)
        clock = PhaseTimer(hardware.device)
        train(state, data.train, plan, clock, measure, NullLogger(), target, StopFlag())
    again = dict(named_tensors(state.capture()))
    expected = {
        name: tensor
        for name, tensor in named_tensors(later)
        if name.partition(".")[0] in state.parts()
    }
    differing = [name for name in expected if not bitwise_equal(expected[name], again.get(name))]
    return {
        "run": str(folder),
        "identical": not differing,
        "from_step": earlier["step"],
        "to_step": later["step"],
        "tensors": len(expected),
        "first_difference": differing[0] if differing else None,
    }


def _last_two(folder: Path) -> list[Path]:
    paths = find_checkpoints(folder / "checkpoints")
    if len(paths) < 2:
        kept = (
            "it keeps only its weights"
            if read_config(folder)["train"]["keep"] == "weights"
            else "has it ended?"
        )
        raise CheckpointError(f"{folder}: needs two checkpoints, has {len(paths)} ({kept})")
    return paths[:2]


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested mappings and lists, under its path."""
    if isinstance(value, Tensor):
        yield name, value
    inside = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inside:
        yield from named_tensors(item, f"{name}.{key}" if name else str(key))


def bitwise_equal(one: Tensor, other: Tensor | None) -> bool:
    """Bit by bit, so that NaN is equal to itself."""
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = [
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (one, other)
    ]
    return torch.equal(*bits)
