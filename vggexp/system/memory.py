"""The host's memory: how libraries say that it is short, and what is kept of it from step to step."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

from vggexp.errors import ResourceError

OOM_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN's, where its own allocation fails
)
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8  # of glibc's malloc.h


def retain_freed_memory() -> None:
    """Freed memory stays with the process for the next step. Does nothing where the C library is not glibc.

    glibc gives large blocks back at once, and each comes again as pages that the kernel fills with zeros when they are
    first touched: 340,000 a step of the source run, a third of its time. Huge pages still take a twelfth.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_ARENA_MAX, 1)  # what one thread has freed another may take


def trim_heap() -> None:
    """What was kept and is free goes back to the system: at the end, and once an epoch lest the peak grow."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that host or device memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in OOM_WORDS)


@contextlib.contextmanager
def oom_as_resource_error(advice: str) -> Iterator[None]:
    """Raises ResourceError in place of any library's word for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory {advice}") from error


CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
