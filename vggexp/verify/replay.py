"""Trains the last stretch of a run again and compares the result bit by bit."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.errors import CheckpointError
from vggexp.loggers.console import Console
from vggexp.runner import build
from vggexp.runner.job import evaluate_epoch
from vggexp.runner.resume import build_run
from vggexp.runs.records import load_config
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint
from vggexp.training.checkpoint_manager import find_checkpoints
from vggexp.training.loop import NullCheckpointer, NullLogger, Position, TrainLoop, train
from vggexp.training.timer import PhaseTimer


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of a replay. The fields are the keys of --json."""

    run: str
    identical: bool
    from_step: int
    to_step: int
    tensors: int  # compared
    first_difference: str | None  # name of the tensor


def replay(folder: Path) -> VerifyResult:
    """Trains from the last checkpoint but one to the last one.

    Raises:
        CheckpointError: The run has too few checkpoints, or several processes trained it.
    """
    later_path, earlier_path = _last_two_checkpoints(folder)
    later = checkpoint.load(later_path)
    earlier = checkpoint.load(earlier_path)
    ranks = later.get("processes", 1)
    if ranks > 1:
        raise CheckpointError(
            f"{folder}: trained by {ranks} processes, "
            "whose sums one process does not repeat bit by bit"
        )
    config = load_config(folder)
    console = Console(None, sys.stderr)
    device_setup, data, state = build_run(config, earlier, console)
    evaluate = partial(
        evaluate_epoch, config=config, device_setup=device_setup, data=data, console=console
    )
    settings = build.train_settings(config, device_setup)
    timer = PhaseTimer(device_setup.device)
    loop = TrainLoop(settings, timer, NullLogger(), NullCheckpointer(), StopFlag())
    train(state, data.train, loop, evaluate, until=Position(later["epoch"], later["batch"]))
    expected = dict(named_tensors({key: later.get(key) for key in state.components()}))
    actual = dict(named_tensors(state.capture()))
    first_difference = None
    for name, tensor in expected.items():
        if not bitwise_equal(tensor, actual.get(name)):
            first_difference = name
            break
    return VerifyResult(
        run=str(folder),
        identical=first_difference is None,
        from_step=earlier["step"],
        to_step=later["step"],
        tensors=len(expected),
        first_difference=first_difference,
    )


def _last_two_checkpoints(folder: Path) -> list[Path]:
    paths = find_checkpoints(folder / "checkpoints")
    if len(paths) < 2:
        reason = "has it ended?"
        if load_config(folder).train.keep == "weights":
            reason = "it keeps only its weights"
        raise CheckpointError(f"{folder}: needs two checkpoints, has {len(paths)} ({reason})")
    return paths[:2]


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor inside nested mappings and lists, under its path."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        yield from named_tensors(item, f"{name}.{key}" if name else str(key))


def bitwise_equal(first: Tensor, second: Tensor | None) -> bool:
    """Compares bits, so that NaN is equal to itself."""
    if second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
