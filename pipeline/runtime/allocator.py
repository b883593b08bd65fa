"""Keeps freed memory in the process, so that every step finds the pages of the step before.

glibc gives large blocks back to the system as soon as they are freed, and the system clears each page again before
the next step touches it: between a quarter and a third of a narrow network's step on a CPU.
"""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell this process's allocator to reuse memory instead of giving it back; it stays so until the process ends.

    Whether it took the setting: False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018  other libraries' mallopt may do nothing
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
