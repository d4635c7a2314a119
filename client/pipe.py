"""Pipe: what passes between a node and the process that trains for it, over one socket.

A packet is three numbers (a mark, the bytes of the head, the bytes of the body), the head as JSON, and the body: the
raw bytes of float32 arrays that the head names, or bytes that mean nothing here. Neither side trusts the other: a task
runs in one of them. Nothing is unpickled, every length has a limit, and an array is moved without a copy in Python.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..privacy.parameters import LONGEST_NAME, MOST_ARRAYS, MOST_VALUES, Array, Parameters

_PREFIX = struct.Struct("<4sIQ")
_MARK = b"pvt1"
MOST_HEAD_BYTES = 8 * 1024 * 1024  # ten thousand arrays with the longest names, and their shapes
MOST_BODY_BYTES = 4 * MOST_VALUES + MOST_HEAD_BYTES
_MOST_DIMENSIONS = 32
_BUFFERS_AT_ONCE = 512  # sendmsg takes 1024
_SOCKET_BUFFER = 4 * 1024 * 1024  # bytes asked for; the system gives what it allows
_ARRAYS = "arrays"

_Shape = tuple[str, tuple[int, ...]]


class PipeError(Exception):
    """The other side sent what is not a packet."""


@dataclass(frozen=True, slots=True, eq=False)
class Packet:
    """`head`: small and JSON. A body is either `arrays` [any shape] float32, or `raw` bytes."""

    head: Mapping[str, Any]
    arrays: Parameters = field(default_factory=dict)
    raw: bytes | memoryview = b""


class Pipe:
    """One end. `deadline` of a call: a moment of time.monotonic() after which it raises TimeoutError."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)

    def send(self, packet: Packet, deadline: float | None = None) -> None:
        """Send it whole; raise OSError where nobody listens."""
        arrays = {name: np.asarray(array, order="C") for name, array in packet.arrays.items()}
        if any(array.dtype != np.float32 for array in arrays.values()) or (arrays and packet.raw):
            raise ValueError("a packet holds float32 arrays, or raw bytes")
        named = [[name, list(array.shape)] for name, array in arrays.items()]
        head = json.dumps({**packet.head, _ARRAYS: named}).encode()
        bodies = [array.reshape(-1).view(np.uint8).data for array in arrays.values()] or [memoryview(packet.raw)]
        size = sum(body.nbytes for body in bodies)
        if len(head) > MOST_HEAD_BYTES or size > MOST_BODY_BYTES:
            raise ValueError(f"a packet of {len(head)} and {size} bytes is too large to send")
        self._send([memoryview(_PREFIX.pack(_MARK, len(head), size)), memoryview(head), *bodies], deadline)

    def receive(self, deadline: float | None = None) -> Packet | None:
        """The next packet; None when the other side has ended. Raises PipeError for what is no packet, else OSError."""
        prefix = bytearray(_PREFIX.size)
        if not self._fill(memoryview(prefix), deadline, may_end=True):
            return None
        mark, head_bytes, body_bytes = _PREFIX.unpack(prefix)
        if mark != _MARK or head_bytes > MOST_HEAD_BYTES or body_bytes > MOST_BODY_BYTES:
            raise PipeError(f"not a packet: {mark!r}, {head_bytes} and {body_bytes} bytes")
        head = bytearray(head_bytes)
        self._fill(memoryview(head), deadline)
        read, shapes = _read_head(head, body_bytes)
        body = np.empty(body_bytes, dtype=np.uint8)
        self._fill(body.data, deadline)
        if not shapes:
            return Packet(read, raw=body.data)
        return Packet(read, arrays=dict(_arrays(body, shapes)))

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def end(self) -> None:
        """Say that nothing more will come."""
        self._socket.shutdown(socket.SHUT_WR)

    def _send(self, buffers: list[memoryview], deadline: float | None) -> None:
        waiting = [buffer for buffer in buffers if buffer.nbytes]
        while waiting:
            self._wait_until(deadline)
            sent = self._socket.sendmsg(waiting[:_BUFFERS_AT_ONCE])
            done = 0
            while done < len(waiting) and sent >= waiting[done].nbytes:
                sent -= waiting[done].nbytes
                done += 1
            waiting = waiting[done:]
            if sent:
                waiting[0] = waiting[0][sent:]

    def _fill(self, buffer: memoryview, deadline: float | None, may_end: bool = False) -> bool:
        """Read until the buffer is full; False where the other side ended before its first byte and may."""
        filled = 0
        while filled < buffer.nbytes:
            self._wait_until(deadline)
            count = self._socket.recv_into(buffer[filled:])
            if not count and may_end and not filled:
                return False
            if not count:
                raise ConnectionError("it ended in the middle of a packet")
            filled += count
        return True

    def _wait_until(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("the time is over")
        self._socket.settimeout(left)


def _read_head(content: bytes | bytearray, body_bytes: int) -> tuple[dict[str, Any], list[_Shape]]:
    """The head and the names and shapes of its arrays, checked against the body's length."""
    try:
        head = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PipeError(f"its head is not JSON: {error}") from None
    named = head.pop(_ARRAYS, None) if isinstance(head, dict) else None
    if not isinstance(named, list) or len(named) > MOST_ARRAYS:
        raise PipeError("its head names no arrays, or too many")
    shapes = [_shape(entry) for entry in named]
    if len({name for name, _ in shapes}) != len(shapes):
        raise PipeError("it names an array twice")
    if shapes and 4 * sum(math.prod(shape) for _, shape in shapes) != body_bytes:
        raise PipeError(f"its arrays do not have the {body_bytes} bytes that it brings")
    return head, shapes


def _shape(entry: object) -> _Shape:
    match entry:
        case [str(name), list(shape)] if 0 < len(name) <= LONGEST_NAME and len(shape) <= _MOST_DIMENSIONS:
            if all(type(length) is int and 0 <= length <= MOST_VALUES for length in shape):
                return name, tuple(shape)
    raise PipeError("an array has no name or no shape")


def _arrays(body: NDArray[np.uint8], shapes: list[_Shape]) -> Iterator[tuple[str, Array]]:
    values, start = body.view(np.float32), 0
    for name, shape in shapes:
        size = math.prod(shape)
        yield name, values[start : start + size].reshape(shape)
        start += size
