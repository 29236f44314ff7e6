"""Collective operations between the ranks of a run.

Every function also works in a single process, where it does nothing or returns its argument.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import zip_longest
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vggexp.distributed.rank import RankInfo, export_torchrun_env, rank_info
from vggexp.errors import ConfigError, RankError, VggexpError
from vggexp.formatting import one_line, printable
from vggexp.system.signals import RESUME_HINT, call_in_thread, interruptible

DEFAULT_TIMEOUT_MINUTES = 10.0  # longest wait for another rank, without device.timeout_minutes
GRACE_SECONDS = 3  # head start of a rank that failed over the ranks that only lost it
RANK0_PRIORITY_SECONDS = 1  # head start of rank 0 in reporting an error
ERROR_KEY = "vggexp/error"  # of the store: the error that a rank has reported
# Texts in errors of collective operations whose peer is gone.
BROKEN_GROUP_TEXTS = ("gloo", "nccl", "connection", "timeout", "timed out", "broken pipe")

T = TypeVar("T")


@dataclass
class ProcessGroupState:
    """The process group that this process has joined; a single process by default."""

    rank_info: RankInfo = field(default_factory=RankInfo)
    store: Any = None
    timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES


_STATE = ProcessGroupState()


def rank() -> int:
    """Returns this process's rank; 0 outside of `process_group`."""
    return _STATE.rank_info.rank


def world_size() -> int:
    """Returns the number of ranks; 1 outside of `process_group`."""
    return _STATE.rank_info.size


def rank_slice() -> slice:
    """Returns this rank's part of a sequence: each world_size-th item, starting at the rank."""
    return slice(rank(), None, world_size())


def local_batch_size(batch_size: int) -> int:
    """Returns the largest number of images that a rank takes of a batch."""
    return ceil(batch_size / world_size())


def device(name: str) -> torch.device:
    """Returns the device of this rank. Several ranks on CUDA each have a GPU of their own.

    Raises:
        ConfigError: the machine has too few GPUs.
    """
    if name != "cuda" or world_size() == 1:
        return torch.device(name)
    index = rank_info().local_rank
    count = torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"device=cuda: rank {rank()} finds no GPU of its own, this machine has {count}"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextlib.contextmanager
def process_group(device_type: str, timeout_minutes: float | None) -> Iterator[None]:
    """Joins the other ranks in the block, if torchrun, srun or runner.launch started several.

    Args:
        device_type: cpu or cuda.
        timeout_minutes: longest wait for a rank; None: DEFAULT_TIMEOUT_MINUTES.

    Raises:
        RankError: the ranks have not met in time.
        StoppedError: a signal has ended the wait for the other ranks.
    """
    info = rank_info()
    minutes = timeout_minutes or DEFAULT_TIMEOUT_MINUTES
    if info.size == 1:
        yield
        return
    join = partial(_join_ranks, device_type, timedelta(minutes=minutes))
    try:
        with interruptible("while it waited for the other ranks"):
            store = call_in_thread(join)
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise RankError(
            f"the {info.size} ranks have not met within {minutes:g} minutes: {reason}"
        ) from error
    _STATE.rank_info = info
    _STATE.store = store
    _STATE.timeout_minutes = minutes
    yield
    # Not in a `finally`: after an error should_report_error needs the group, and destroying the
    # group would wait for ranks that are gone.
    _STATE.rank_info = RankInfo()
    _STATE.store = None
    distributed.destroy_process_group()


def _join_ranks(device_type: str, timeout: timedelta) -> distributed.Store:
    info = rank_info()
    store = _connect_store(timeout)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=store,
        rank=info.rank,
        world_size=info.size,
        timeout=timeout,
    )
    return store


def _connect_store(timeout: timedelta) -> distributed.Store:
    export_torchrun_env()
    info = rank_info()
    store, _, _ = next(distributed.rendezvous("env://", info.rank, info.size, timeout=timeout))
    return store


@contextlib.contextmanager
def translate_rank_errors(resume_hint: str = RESUME_HINT) -> Iterator[None]:
    """Raises RankError in place of torch's error about a rank that is gone or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_lost_rank(error):
            raise
        time.sleep(GRACE_SECONDS)  # the failed rank reports its own error first
        raise RankError(_cause(str(error), resume_hint)) from error


def _is_lost_rank(error: RuntimeError) -> bool:
    message = str(error).lower()
    if isinstance(error, distributed.DistError):
        return True
    return any(text in message for text in BROKEN_GROUP_TEXTS)


def _cause(message: str, resume_hint: str) -> str:
    """Returns the reported error of the rank that failed first, or a guess from `message`."""
    with contextlib.suppress(RuntimeError):  # the store may have ended with its process
        if _STATE.store.check([ERROR_KEY]):
            return _STATE.store.get(ERROR_KEY).decode()
    if "timed out" in message.lower() or "timeout" in message.lower():
        minutes = _STATE.timeout_minutes
        return f"a rank has not answered for {minutes:g} minutes (device.timeout_minutes)"
    return f"a rank has ended before the others; {resume_hint}"


def should_report_error(message: str) -> bool:
    """Returns whether this rank prints an error, so that one of several ranks prints it.

    This is a protocol of one store key and sleeps. Each rank that has an error tries to set the
    key, and the rank that succeeds prints. The sleeps give the order:

    1. Rank 0 tries at once.
    2. Other ranks that have an error try RANK0_PRIORITY_SECONDS later.
    3. Ranks that only lost another rank try GRACE_SECONDS after that (`translate_rank_errors`).

    Guarantees while the store lives:

    - At most one rank prints.
    - If an error occurs on all ranks at the same time (within RANK0_PRIORITY_SECONDS), rank 0
      prints.
    - A rank that failed prints rather than the ranks that lost it, if the loss is noticed within
      GRACE_SECONDS.

    The store lives in rank 0, or in the agent of torch's elastic launch. Without an agent, rank 0
    waits for the other ranks before it ends. If the store is gone, its process has ended. Then
    rank 0 prints, and without an agent (the store was rank 0's, and rank 0 was killed) each rank
    that had joined the group prints.
    """
    info = rank_info()
    if info.size == 1:
        return True
    report = printable(f"rank {info.rank}: {message}")  # a path may hold bytes that are not UTF-8
    try:
        # An error before the ranks have met needs a connection of its own.
        store = _STATE.store or _connect_store(timedelta(seconds=GRACE_SECONDS))
        if info.rank > 0:
            time.sleep(RANK0_PRIORITY_SECONDS)
        is_first = store.compare_set(ERROR_KEY, "", report) == report.encode()
        if info.rank == 0 and not _has_elastic_agent():
            time.sleep(2 * RANK0_PRIORITY_SECONDS)
        return is_first
    except RuntimeError:
        return info.rank == 0 or (_STATE.store is not None and not _has_elastic_agent())


def _has_elastic_agent() -> bool:
    """Returns whether torch's elastic launch started this rank; its agent keeps the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_on_rank_zero(call: Callable[[], T]) -> T:
    """Calls on rank 0 only, and returns the result on all ranks.

    A VggexpError of the call is raised on all ranks.
    """
    if world_size() == 1:
        return call()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [call()]
        except VggexpError as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome, 0, device=torch.device("cpu"))
    if isinstance(outcome[0], VggexpError):
        raise outcome[0]
    return outcome[0]


def assert_same_on_all_ranks(values: Mapping[str, Any], advice: str) -> None:
    """Raises RankError on all ranks if a rank has other values than rank 0."""
    if world_size() == 1:
        return
    expected, *others = all_gather_object(dict(values))
    for index, actual in enumerate(others, 1):
        differences = []
        for key in {**expected, **actual}:
            if expected.get(key) != actual.get(key):
                differences.append(f"{key} {expected.get(key)} -> {actual.get(key)}")
        if differences:
            listed = ", ".join(differences[:4])
            raise RankError(f"rank {index} is not as rank 0: {listed}; {advice}")


def all_gather_object(value: T) -> list[T]:
    """Returns the values of all ranks, in the order of the ranks."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def gather_interleaved(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Returns the batches of all ranks in their order, if each rank has its `rank_slice`."""
    if world_size() == 1:
        return list(batches)
    on_cpu = [tuple(tensor.cpu() for tensor in batch) for batch in batches]
    ordered = []
    for batches_of_ranks in zip_longest(*all_gather_object(on_cpu)):
        ordered += [batch for batch in batches_of_ranks if batch is not None]
    return ordered


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum over the ranks."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def all_reduce_max(value: int) -> int:
    """Returns the largest value of the ranks."""
    if world_size() == 1:
        return value
    values = torch.tensor(value)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def barrier() -> None:
    """Waits until all ranks have called it.

    This is an all-reduce on the CPU. torch's own barrier would run on the GPU with NCCL.
    """
    all_reduce_max(0)


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Copies rank 0's values to all ranks, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        distributed.broadcast(tensor, 0)


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Runs the block first on local rank 0 of each machine, then on the other ranks.

    So the other ranks find what local rank 0 has downloaded.
    """
    is_first = rank_info().local_rank == 0
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()
