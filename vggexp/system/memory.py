"""Recognizes out-of-memory errors, measures peak memory, controls what malloc keeps."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from vggexp.errors import ResourceError

OOM_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN's text if its own allocation fails
)
# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

CLEAR = Path("/proc/self/clear_refs")  # writing "5" resets the peak of the resident memory
STATUS = Path("/proc/self/status")  # holds the peak as VmHWM


def retain_freed_memory() -> None:
    """Keeps freed memory in the process for the next step, if the C library is glibc.

    By default glibc returns large blocks to the system at once. Each block then comes back as
    pages that the kernel fills with zeros at the first access: 340,000 pages a step of the source
    run, a third of its time. Huge pages still take a twelfth.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_ARENA_MAX, 1)  # memory freed by one thread is available to the others


def trim_heap() -> None:
    """Returns free memory of the heap to the system.

    Called at the end, and once an epoch so that the peak does not grow.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that host or device memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return any(text in message for text in OOM_TEXTS)


@contextlib.contextmanager
def oom_as_resource_error(advice: str) -> Iterator[None]:
    """Raises ResourceError in place of any library's out-of-memory error.

    Args:
        advice: follows "out of memory" in the error text.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory {advice}") from error


def reset_peak_memory(device: torch.device) -> None:
    """Restarts the measurement of `peak_memory`; the process may have done another run before."""
    with contextlib.suppress(OSError):  # not Linux
        CLEAR.write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Returns `peak_memory_bytes` of the process, and on CUDA `peak_device_memory_bytes`."""
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        peaks = {"peak_memory_bytes": int(kib) * 1024}
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes, else in KiB
        maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks = {"peak_memory_bytes": maximum * unit}
    if device.type == "cuda":
        peaks["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks
