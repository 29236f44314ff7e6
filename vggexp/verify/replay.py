"""Trains the last stretch of a run again and compares the result bit by bit."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from vggexp.runs.data_root import hint_at_moved_data, locate_data
from vggexp.runs.directory import read_result
from vggexp.runs.records import load_config
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint_schema
from vggexp.training.checkpoint_manager import find_checkpoints
from vggexp.training.loop import NullCheckpointer, NullLogger, Position, TrainLoop, train
from vggexp.training.timer import PhaseTimer

# Fields of a checkpoint that a replay does not repeat: times, and what the configuration sets. And
# where the next point of the curves starts, which a run of an earlier version did not record.
NOT_COMPARED = ("spent", "images_per_second", "param_groups", "last_totals")


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of a replay. The fields are the keys of --json."""

    run: str
    identical: bool
    from_step: int
    to_step: int
    tensors: int  # compared
    first_difference: str | None  # name of the tensor or number


def replay(folder: Path, data: Path | None = None) -> VerifyResult:
    """Trains from the last checkpoint but one to the last one.

    Args:
        data: Folder of the run's data. None: data.root of the run.

    Raises:
        CheckpointError: The run has too few checkpoints, or several processes trained it.
    """
    later_path, earlier_path = _last_two_checkpoints(folder)
    later = checkpoint_schema.load(later_path)
    earlier = checkpoint_schema.load(earlier_path)
    ranks = later.get("processes", 1)
    if ranks > 1:
        raise CheckpointError(
            f"{folder}: trained by {ranks} processes, "
            "whose sums one process does not repeat bit by bit"
        )
    config = locate_data(load_config(folder), folder, data)
    if config.resume == "exact":  # of the run itself; a replay on another machine only warns
        config = replace(config, resume="auto")
    console = Console(None, sys.stderr)
    with hint_at_moved_data():
        device_setup, loaders, state = build_run(config, earlier, console)
    evaluate = partial(
        evaluate_epoch, config=config, device_setup=device_setup, data=loaders, console=console
    )
    settings = build.train_settings(config, device_setup)
    timer = PhaseTimer(device_setup.device)
    loop = TrainLoop(settings, timer, NullLogger(), NullCheckpointer(), StopFlag())
    train(state, loaders.train, loop, evaluate, until=Position(later["epoch"], later["batch"]))
    actual = dict(named_values(state.capture()))
    expected = dict(named_values({key: later.get(key) for key in state.capture()}))
    first_difference = None
    for name in {**expected, **actual}:
        if not bitwise_equal(expected.get(name), actual.get(name)):
            first_difference = name
            break
    return VerifyResult(
        run=str(folder),
        identical=first_difference is None,
        from_step=earlier["step"],
        to_step=later["step"],
        tensors=sum(isinstance(value, Tensor) for value in expected.values()),
        first_difference=first_difference,
    )


def _last_two_checkpoints(folder: Path) -> list[Path]:
    paths = find_checkpoints(folder / "checkpoints")
    if len(paths) < 2:
        reason = "has it ended?"
        result = read_result(folder)
        if load_config(folder).train.keep == "weights":
            reason = "it keeps only its weights"
        elif result.get("state") == "finished":
            is_short = result.get("epoch") == 1
            reason = "a run of one epoch leaves one" if is_short else "the others were deleted"
        elif result.get("state") == "paused":
            reason = "it is paused and keeps its newest; train.keep=all keeps all"
        raise CheckpointError(f"{folder}: needs two checkpoints, has {len(paths)} ({reason})")
    return paths[:2]


def named_values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every tensor and plain value inside nested mappings and lists, under its path.

    Fields of NOT_COMPARED and all times are left out.
    """
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield name, value
        return
    for key, item in items:
        path = f"{name}.{key}" if name else str(key)
        if key not in NOT_COMPARED and not str(key).startswith("time/"):
            yield from named_values(item, path)


def bitwise_equal(first: Any, second: Any) -> bool:
    """Compares the bits of tensors and the digits of numbers, so that NaN is equal to itself."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return repr(first) == repr(second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
