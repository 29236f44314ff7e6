"""What the processes of a run, its ranks, tell one another. With one process nothing here does anything."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vggexp.distributed.rank import RankInfo, export_torchrun_env, rank_info
from vggexp.errors import ConfigError, RankError, VggexpError

DEFAULT_TIMEOUT_MINUTES = (
    10.0  # that the others wait for a rank, unless device.timeout_minutes says otherwise
)
GRACE_SECONDS = 3  # in which a rank that failed is noticed before those that miss it
RANK0_PRIORITY_SECONDS = 1  # in which rank 0 tells what all ranks know
ERROR_KEY = "vggexp/told"
BROKEN_GROUP_WORDS = (
    "gloo",
    "nccl",
    "connection",
    "timeout",
    "timed out",
    "broken pipe",
)  # of what a collective call raises

T = TypeVar("T")


@dataclass
class ProcessGroupState:
    """The ranks that have met."""

    place: RankInfo = field(default_factory=RankInfo)
    store: Any = None
    minutes: float = DEFAULT_TIMEOUT_MINUTES


_STATE = ProcessGroupState()


def rank() -> int:
    return _STATE.place.rank


def world_size() -> int:
    return _STATE.place.size


def rank_slice() -> slice:
    """What of a sequence is this rank's: every size-th item, from its rank on."""
    return slice(rank(), None, world_size())


def local_batch_size(batch_size: int) -> int:
    """The images of a batch that a rank takes, at most."""
    return ceil(batch_size / world_size())


def device(name: str) -> torch.device:
    """Of several ranks on CUDA each has a GPU of its own. Raises ConfigError where the machine has too few."""
    if name != "cuda" or world_size() == 1:
        return torch.device(name)
    number = rank_info().local_rank
    count = torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"device=cuda: rank {rank()} finds no GPU of its own, this machine has {count}"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextlib.contextmanager
def process_group(kind: str, minutes: float | None) -> Iterator[None]:
    """Waits for the other ranks, where torchrun, srun or vggexp.runner.launch has started several. Raises RankError.

    kind: of their devices, cpu or cuda.
    """
    here = rank_info()
    minutes = minutes or DEFAULT_TIMEOUT_MINUTES
    if here.size == 1:
        yield
        return
    timeout = timedelta(minutes=minutes)
    try:
        store = _common_store(timeout)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(
            backend, store=store, rank=here.rank, world_size=here.size, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise RankError(
            f"the {here.size} ranks have not met within {minutes:g} minutes: {told}"
        ) from error
    _STATE.place = here
    _STATE.store = store
    _STATE.minutes = minutes
    yield
    # After an error the group stays: `tells` needs it, and to end it would wait for those who are not there.
    _STATE.place = RankInfo()
    _STATE.store = None
    distributed.destroy_process_group()


def _common_store(timeout: timedelta) -> distributed.Store:
    export_torchrun_env()
    here = rank_info()
    return next(distributed.rendezvous("env://", here.rank, here.size, timeout=timeout))[0]


@contextlib.contextmanager
def translate_rank_errors() -> Iterator[None]:
    """Raises RankError in place of a library's word for a rank that has gone or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_broken(error):
            raise
        time.sleep(GRACE_SECONDS)
        raise RankError(_cause(str(error))) from error


def _is_broken(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or any(
        word in words for word in BROKEN_GROUP_WORDS
    )


def _cause(words: str) -> str:
    """What the rank that failed first has said, else what its absence looks like."""
    with contextlib.suppress(RuntimeError):  # the store may have gone with its process
        if _STATE.store.check([ERROR_KEY]):
            return _STATE.store.get(ERROR_KEY).decode()
    if "timed out" in words.lower() or "timeout" in words.lower():
        return f"a rank has not answered for {_STATE.minutes:g} minutes (device.timeout_minutes)"
    return "a rank has ended before the others; run the same command to continue"


def should_report_error(text: str) -> bool:
    """Whether it is this rank that tells an error: of those who have one the first, and rank 0 before any other."""
    here = rank_info()
    if here.size == 1:
        return True
    mine = f"rank {here.rank}: {text}"
    try:
        store = _STATE.store or _common_store(
            timedelta(seconds=GRACE_SECONDS)
        )  # of an error before they have met
        time.sleep(RANK0_PRIORITY_SECONDS if here.rank else 0)
        is_first = store.compare_set(ERROR_KEY, "", mine) == mine.encode()
        time.sleep(
            0 if here.rank or _has_starter() else 2 * RANK0_PRIORITY_SECONDS
        )  # the store ends with rank 0
        return is_first
    except RuntimeError:  # the store has gone with the process that kept it: rank 0, or the starter
        return here.rank == 0 or (_STATE.store is not None and not _has_starter())


def _has_starter() -> bool:
    """Of torch's elastic launch, which keeps the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_on_rank_zero(call: Callable[[], T]) -> T:
    """What the call returns on rank 0, the only one that makes it; on every rank. Its VggexpError is raised on all."""
    if world_size() == 1:
        return call()
    ended: list[Any] = [None]
    if rank() == 0:
        try:
            ended = [call()]
        except VggexpError as error:
            ended = [error]
    distributed.broadcast_object_list(ended, 0, device=torch.device("cpu"))
    if isinstance(ended[0], VggexpError):
        raise ended[0]
    return ended[0]


def assert_same_on_all_ranks(facts: Mapping[str, Any], advice: str) -> None:
    """Raises RankError on all ranks where one has other values than rank 0."""
    if world_size() == 1:
        return
    here, *others = all_gather_object(dict(facts))
    for number, there in enumerate(others, 1):
        differing = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        if differing:
            told = ", ".join(f"{key} {here.get(key)} -> {there.get(key)}" for key in differing[:4])
            raise RankError(f"rank {number} is not as rank 0: {told}; {advice}")


def all_gather_object(value: T) -> list[T]:
    """The value of each rank, in their order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def gather_interleaved(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """All batches in their order, where each rank has those of its `share`."""
    if world_size() == 1:
        return list(batches)
    parts = all_gather_object([tuple(tensor.cpu() for tensor in batch) for batch in batches])
    return [batch for turn in zip_longest(*parts) for batch in turn if batch is not None]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the ranks."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def all_reduce_max(number: int) -> int:
    """Of the ranks' numbers. All wait for one another."""
    if world_size() == 1:
        return number
    values = torch.tensor(number)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Rank 0's values for all, in place."""
    for tensor in tensors if world_size() > 1 else ():
        distributed.broadcast(tensor, 0)


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """On each machine one rank goes first, so that the others find what it has fetched."""
    if rank_info().local_rank:
        all_reduce_max(0)
    yield
    if not rank_info().local_rank:
        all_reduce_max(0)
