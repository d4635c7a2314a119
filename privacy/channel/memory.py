"""Memory for what comes in by the hundred megabytes: half the time of a transfer would go into page faults.

Advice only, in two places: glibc keeps what chunks of 1 MiB were held in instead of giving it back to the kernel after
each, and an array's bytes are asked for in large pages. Where the system has neither, nothing is done.
"""

import ctypes
import sys

from .limits import CHUNK_BYTES, MIB

# From here on an array gets pages of its own, which go back when it is freed. Above any chunk, which is used anew.
_OWN_PAGES_BYTES = 4 * CHUNK_BYTES
# What may be kept free at the heap's end: an update of many small arrays, so that the next finds its place warm.
_KEPT_FREE_BYTES = 256 * MIB
_HUGE_PAGE_BYTES = 2 * MIB

# glibc: malloc.h; Linux: mman-common.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_HUGEPAGE = 14


def keep_chunks() -> None:
    """Let this process use a chunk's memory anew. Once, when it starts: a server, a node."""
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


def zeros(size: int) -> bytes:
    """So many zero bytes. Large ones cost nothing until they are written, as `io.BytesIO(zeros(size))` does in place.

    >>> zeros(3)
    b'\\x00\\x00\\x00'
    """
    content = bytes(size)
    madvise = _of_libc("madvise")
    if size >= _OWN_PAGES_BYTES and madvise is not None:
        address = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0
        start = -(-address // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        length = (address + size - start) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return content


def _of_libc(name: str) -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
