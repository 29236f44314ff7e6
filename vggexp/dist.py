"""What the processes of a run, its ranks, tell one another. With one process nothing here does anything."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from math import ceil
from signal import Signals
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vggexp.errors import ConfigError, RankError, VggexpError
from vggexp.place import Place, place, settle
from vggexp.signals import Stop

MINUTES = 10.0  # that the others wait for a rank, unless device.timeout_minutes says otherwise
MEETING = 2  # steps from one question of `SharedStop` to the next
GRACE_SECONDS = 3  # in which a rank that failed is noticed before those that miss it
TURN_SECONDS = 1  # in which rank 0 tells what all ranks know
TOLD = "vggexp/told"
WORDS = ("gloo", "nccl", "connection", "timeout", "timed out", "broken pipe")  # of what a collective call raises

T = TypeVar("T")


@dataclass
class Group:
    """The ranks that have met."""

    place: Place = field(default_factory=Place)
    store: Any = None
    minutes: float = MINUTES


GROUP = Group()


def rank() -> int:
    return GROUP.place.rank


def size() -> int:
    return GROUP.place.size


def share() -> slice:
    """What of a sequence is this rank's: every size-th item, from its rank on."""
    return slice(rank(), None, size())


def part(batch_size: int) -> int:
    """The images of a batch that a rank takes, at most."""
    return ceil(batch_size / size())


def device(name: str) -> torch.device:
    """Of several ranks on CUDA each has a GPU of its own. Raises ConfigError where the machine has too few."""
    if name != "cuda" or size() == 1:
        return torch.device(name)
    number, count = place().local_rank, torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"device=cuda: rank {rank()} finds no GPU of its own, this machine has {count}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextlib.contextmanager
def joined(kind: str, minutes: float | None) -> Iterator[None]:
    """Waits for the other ranks, where torchrun, srun or vggexp.ranks has started several. Raises RankError.

    kind: of their devices, cpu or cuda.
    """
    here, minutes = place(), minutes or MINUTES
    if here.size == 1:
        yield
        return
    timeout = timedelta(minutes=minutes)
    try:
        store = _common_store(timeout)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise RankError(f"the {here.size} ranks have not met within {minutes:g} minutes: {told}") from error
    GROUP.place, GROUP.store, GROUP.minutes = here, store, minutes
    yield
    # After an error the group stays: `tells` needs it, and to end it would wait for those who are not there.
    GROUP.place, GROUP.store = Place(), None
    distributed.destroy_process_group()


def _common_store(timeout: timedelta) -> distributed.Store:
    settle()
    here = place()
    return next(distributed.rendezvous("env://", here.rank, here.size, timeout=timeout))[0]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raises RankError in place of a library's word for a rank that has gone or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not _is_broken(error):
            raise
        time.sleep(GRACE_SECONDS)
        raise RankError(_cause(str(error))) from error


def _is_broken(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or any(word in words for word in WORDS)


def _cause(words: str) -> str:
    """What the rank that failed first has said, else what its absence looks like."""
    with contextlib.suppress(RuntimeError):  # the store may have gone with its process
        if GROUP.store.check([TOLD]):
            return GROUP.store.get(TOLD).decode()
    if "timed out" in words.lower() or "timeout" in words.lower():
        return f"a rank has not answered for {GROUP.minutes:g} minutes (device.timeout_minutes)"
    return "a rank has ended before the others; run the same command to continue"


def tells(text: str) -> bool:
    """Whether it is this rank that tells an error: of those who have one the first, and rank 0 before any other."""
    here = place()
    if here.size == 1:
        return True
    mine = f"rank {here.rank}: {text}"
    try:
        store = GROUP.store or _common_store(timedelta(seconds=GRACE_SECONDS))  # of an error before they have met
        time.sleep(TURN_SECONDS if here.rank else 0)
        is_first = store.compare_set(TOLD, "", mine) == mine.encode()
        time.sleep(0 if here.rank or _has_starter() else 2 * TURN_SECONDS)  # the store ends with rank 0
        return is_first
    except RuntimeError:  # the store has gone with the process that kept it: rank 0, or the starter
        return here.rank == 0 or (GROUP.store is not None and not _has_starter())


def _has_starter() -> bool:
    """Of torch's elastic launch, which keeps the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first(call: Callable[[], T]) -> T:
    """What the call returns on rank 0, the only one that makes it; on every rank. Its VggexpError is raised on all."""
    if size() == 1:
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


def same(facts: Mapping[str, Any], advice: str) -> None:
    """Raises RankError on all ranks where one has other values than rank 0."""
    if size() == 1:
        return
    here, *others = everywhere(dict(facts))
    for number, there in enumerate(others, 1):
        differing = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        if differing:
            told = ", ".join(f"{key} {here.get(key)} -> {there.get(key)}" for key in differing[:4])
            raise RankError(f"rank {number} is not as rank 0: {told}; {advice}")


def everywhere(value: T) -> list[T]:
    """The value of each rank, in their order."""
    values: list[Any] = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def woven(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """All batches in their order, where each rank has those of its `share`."""
    if size() == 1:
        return list(batches)
    parts = everywhere([tuple(tensor.cpu() for tensor in batch) for batch in batches])
    return [batch for turn in zip_longest(*parts) for batch in turn if batch is not None]


def total(values: Tensor) -> Tensor:
    """The sum over the ranks."""
    if size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def largest(number: int) -> int:
    """Of the ranks' numbers. All wait for one another."""
    if size() == 1:
        return number
    values = torch.tensor(number)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def spread(tensors: Iterable[Tensor]) -> None:
    """Rank 0's values for all, in place."""
    for tensor in tensors if size() > 1 else ():
        distributed.broadcast(tensor, 0)


@contextlib.contextmanager
def one_before() -> Iterator[None]:
    """On each machine one rank goes first, so that the others find what it has fetched."""
    if place().local_rank:
        largest(0)
    yield
    if not place().local_rank:
        largest(0)


class SharedStop(Stop):
    """A stop of all ranks at the same step, whichever of them a signal has reached.

    Every few steps each tells the others what it has heard, and reads what they told a few steps ago: by then it has
    come, since no rank can be a step ahead of another, and nobody waits.
    """

    def __init__(self, own: Stop):
        super().__init__()
        self.own, self.advice = own, own.advice
        self.steps = 0
        self.asked: tuple[Any, Tensor] = (None, torch.zeros(2, dtype=torch.int64))

    def step(self, due: bool) -> bool:
        """After each step, on every rank: whether one of them has found a checkpoint due, or a stop."""
        self.steps += 1
        if self.steps % MEETING:
            return False
        work, answer = self.asked
        if work is not None:
            work.wait()
        number, wanted = answer.tolist()
        self._hear(number)
        question = torch.tensor([int(self.own.signal or 0), int(due)])
        self.asked = (distributed.all_reduce(question, distributed.ReduceOp.MAX, async_op=True), question)
        return bool(number or wanted)

    def rest(self, seconds: float) -> None:
        """In which the ranks stay together. Without a rest they still meet once."""
        for _ in range(ceil(seconds)):
            self.own.rest(1)
            self._hear(largest(int(self.own.signal or 0)))
            if self.signal is not None:
                return
        self._hear(largest(int(self.own.signal or 0)))

    def _hear(self, number: int) -> None:
        self.signal = self.signal or (Signals(number) if number else None)
