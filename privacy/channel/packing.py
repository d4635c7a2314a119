"""float32 whose lower halves are all zero, as half the bytes. Lossless; whoever rounds to bfloat16 does so elsewhere.

An array is known by its `.npy` header (NEP 1: magic, version 1.0, length, description), which travels whole; after it
come the upper halves of the values instead of the values.
"""

import io
import re

import numpy as np

from .memory import zeros
from .wire import malformed

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': False, 'shape': \([0-9, ]*\), \} *\n", re.DOTALL
)
_LENGTH_ENDS = 10  # magic, version, length of the description
_PIECE = 2**20  # values: a temporary of that many at a time


def packed(data: bytes) -> tuple[memoryview, memoryview] | None:
    """The header and the upper halves, or None for what is not plain float32 or would lose a bit."""
    start = _values_start(data)
    if start is None or (len(data) - start) % 4:
        return None
    halves = np.frombuffer(data, dtype="<u2", offset=start)
    if any(halves[at : at + 2 * _PIECE : 2].any() for at in range(0, len(halves), 2 * _PIECE)):
        return None
    return memoryview(data)[:start], np.ascontiguousarray(halves[1::2]).data.cast("B")


def unpacked(data: bytes) -> bytes:
    """The array as it was before `packed`. Raises ChannelError for what cannot come from there."""
    start = _values_start(data)
    if start is None or (len(data) - start) % 2:
        raise malformed("packed values behind no header of float32")
    halves = np.frombuffer(data, dtype="<u2", offset=start)
    whole = io.BytesIO(zeros(start + 4 * len(halves)))
    with whole.getbuffer() as content:
        content[:start] = data[:start]
        np.frombuffer(content, dtype="<u2", offset=start)[1::2] = halves
    return whole.getvalue()


def _values_start(data: bytes) -> int | None:
    """Where the values begin, or None where the header is not the one that numpy writes for float32."""
    end = _LENGTH_ENDS + int.from_bytes(data[_LENGTH_ENDS - 2 : _LENGTH_ENDS], "little")
    return end if _HEADER.fullmatch(data[:end]) else None
