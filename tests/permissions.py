"""Lets root meet missing permissions as every other user does."""

import contextlib
import ctypes
from collections.abc import Iterator

CAPABILITY_VERSION = 0x20080522  # from linux/capability.h
FILE_CAPABILITIES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root passes every check


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Obeys the rights of files in the block; of another user than root they are obeyed anyway."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, in two parts
    libc.capget(header, before)
    during = (ctypes.c_uint32 * 6)(*before)
    during[0] &= ~FILE_CAPABILITIES
    libc.capset(header, during)
    try:
        yield
    finally:
        libc.capset(header, before)
