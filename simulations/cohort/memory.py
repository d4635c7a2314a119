"""Freed memory, kept: what a process that only trains asks of the C library.

A step of a cohort allocates and frees a few tensors of megabytes. The C library gives such memory back to the system at
once, and to get it again costs a page fault for every 4 kB: measured at 30% of a round of the small CNN.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**30  # bytes at the end of the heap
_LARGEST = 2**25  # bytes of one tensor: the largest that glibc takes here


def keep_memory() -> bool:
    """Keep up to a gigabyte of freed memory in this process; False where the C library is none that can be asked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
