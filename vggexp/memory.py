"""How libraries say that memory is short, which each does in its own way."""

import contextlib
from collections.abc import Iterator

import torch

from vggexp.errors import ResourceError

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc")


def is_short(error: BaseException) -> bool:
    """Whether an error means that host or device memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


@contextlib.contextmanager
def told(advice: str) -> Iterator[None]:
    """Raises ResourceError in place of any library's word for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_short(error):
            raise
        raise ResourceError(f"out of memory {advice}") from error
