"""Keep the memory of large arrays in the process, instead of asking the system for each one anew."""

import ctypes
from typing import Final

# glibc's mallopt, <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MOST: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse freed blocks of any size; elsewhere nothing changes.

    By default each allocation over 32 MB gets a new mapping, whose pages the kernel zeroes again: a fifth of a
    training step on a CPU. The price is that the process keeps its peak size.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    # Before 2.35 glibc refuses so large a threshold (and returns 0); the trimming alone would make matters worse.
    if mallopt(_M_MMAP_THRESHOLD, _MOST):
        mallopt(_M_TRIM_THRESHOLD, _MOST)
