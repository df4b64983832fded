"""Keep the memory of large arrays in the process, instead of asking the system for each anew; but not without end."""

import ctypes
import os
from pathlib import Path
from typing import Final

# glibc's mallopt, <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MOST: Final = 2**31 - 1
_SETTLING: Final = 5  # steps after which a process has what a step needs
_GROWTH: Final = 0.25  # of what it has then: so much more is given back
_LEAST: Final = 2**25  # bytes that are worth it


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse freed blocks of any size; elsewhere nothing changes.

    By default each allocation over 32 MB gets a new mapping, whose pages the kernel zeroes again: a fifth of a
    training step on a CPU. The price is that the process keeps its peak size, and holes: HolesInHeap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    # Before 2.35 glibc refuses so large a threshold (and returns 0); the trimming alone would make matters worse.
    if mallopt(_M_MMAP_THRESHOLD, _MOST):
        mallopt(_M_TRIM_THRESHOLD, _MOST)


class HolesInHeap:
    """Freed memory that is not used again, given back to the system when a training run has gathered too much of it.

    Before version 2.39 glibc seldom uses a freed block for another aligned one of its size (its bugs 14581 and 30723),
    and torch aligns all tensors: once something small that stays lies behind such a block, each step leaves a hole.
    """

    def __init__(self) -> None:
        self._settled = self._steps = 0  # bytes in memory after _SETTLING steps; steps since holes were given back
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # none where it is not glibc

    def after_step(self) -> None:
        """To be called after each step."""
        if not self._trim:
            return
        resident = resident_bytes()
        self._steps += 1
        if self._steps <= _SETTLING:
            self._settled = resident
        elif resident - self._settled > max(_LEAST, _GROWTH * self._settled):
            self._trim(0)
            self._steps = 0


def resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not say so as Linux does."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
