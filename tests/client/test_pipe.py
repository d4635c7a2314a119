"""Packets between a node and the process that trains: what is no packet is refused before memory is given for it."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.client.pipe import MOST_BODY_BYTES, MOST_HEAD_BYTES, Packet, Pipe, PipeError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Pipe]]:
    """One end raw, the other a Pipe."""
    raw, end = socket.socketpair()
    with raw, end:
        yield raw, Pipe(end)


def framed(head: object, body: bytes = b"", body_bytes: int | None = None, mark: bytes = b"pvt1") -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<4sIQ", mark, len(text), len(body) if body_bytes is None else body_bytes) + text + body


def test_packets_follow_one_another_whatever_their_size(ends: tuple[socket.socket, Pipe]) -> None:
    raw, pipe = ends
    other = Pipe(raw)
    packets = [
        Packet({"a": 1}, {str(n): np.full((n,), n, np.float32) for n in range(1500)}),
        Packet({"b": [1, None, "ü"]}, raw=b"x" * 1000),
        Packet({}, {"large": np.arange(5_000_000, dtype=np.float32)}),  # more than a socket takes at once
        Packet({}),
    ]
    sender = threading.Thread(target=lambda: [other.send(packet, time.monotonic() + 60) for packet in packets])
    sender.start()
    read = [pipe.receive(time.monotonic() + 60) for _ in packets]
    sender.join()
    for ours, theirs in zip(packets, read, strict=True):
        assert theirs is not None
        assert (dict(theirs.head), bytes(theirs.raw)) == (dict(ours.head), bytes(ours.raw))
        assert {name: array.tolist() for name, array in theirs.arrays.items()} == {
            name: array.tolist() for name, array in ours.arrays.items()
        }


def test_end_between_packets_is_an_end_and_within_one_an_error(ends: tuple[socket.socket, Pipe]) -> None:
    raw, pipe = ends
    raw.sendall(framed({"arrays": []}) + framed({"arrays": []}, b"1234")[:-1])
    raw.shutdown(socket.SHUT_WR)
    assert pipe.receive() is not None
    with pytest.raises(ConnectionError):
        pipe.receive()
    assert pipe.receive() is None


def test_end_within_the_first_bytes_is_an_error(ends: tuple[socket.socket, Pipe]) -> None:
    raw, pipe = ends
    raw.sendall(framed({"arrays": []})[:5])
    raw.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        pipe.receive()


@pytest.mark.parametrize(
    "content",
    [
        framed({"arrays": []}, mark=b"pvt2"),
        struct.pack("<4sIQ", b"pvt1", MOST_HEAD_BYTES + 1, 0),
        struct.pack("<4sIQ", b"pvt1", 2, MOST_BODY_BYTES + 1),
        framed(b"{"),
        framed(b"\xff\xff"),
        framed(b"[" * 100_000),
        framed([]),
        framed({}),
        framed({"arrays": {}}),
        framed({"arrays": [["a", [1]]] * 2}, bytes(8)),
        framed({"arrays": [["a", [1]]]}, bytes(8)),
        framed({"arrays": [["a", [1]]]}, body_bytes=2**31),
        framed({"arrays": [["", [1]]]}, bytes(4)),
        framed({"arrays": [["a" * 257, [1]]]}, bytes(4)),
        framed({"arrays": [["a", [-1, -1]]]}, bytes(4)),
        framed({"arrays": [["a", [True]]]}, bytes(4)),
        framed({"arrays": [["a", [1.0]]]}, bytes(4)),
        framed({"arrays": [["a", [2**29, 0]]]}),
        framed({"arrays": [["a", [1] * 33]]}, bytes(4)),
        framed({"arrays": [["a"]]}, bytes(4)),
        framed({"arrays": [["a", [1], 2]]}, bytes(4)),
        framed({"arrays": [[1, [1]]]}, bytes(4)),
        framed({"arrays": [[str(n), [0]] for n in range(10_001)]}),
    ],
)
def test_attack_what_is_no_packet(ends: tuple[socket.socket, Pipe], content: bytes) -> None:
    raw, pipe = ends
    sender = threading.Thread(target=raw.sendall, args=(content,))
    sender.start()
    with pytest.raises(PipeError):
        pipe.receive(time.monotonic() + 60)
    pipe.close()
    sender.join()


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda tail: framed({"arrays": []})[:16] + tail)))
def test_attack_random_bytes(content: bytes) -> None:
    raw, end = socket.socketpair()
    with raw, end:
        raw.sendall(content)
        raw.shutdown(socket.SHUT_WR)
        pipe = Pipe(end)
        try:
            while pipe.receive(time.monotonic() + 60) is not None:
                pass
        except (PipeError, ConnectionError):
            return


def test_silence_ends_in_time(ends: tuple[socket.socket, Pipe]) -> None:
    raw, pipe = ends
    with pytest.raises(TimeoutError):
        pipe.receive(time.monotonic() + 0.02)
    raw.sendall(framed({"arrays": []})[:7])
    with pytest.raises(TimeoutError):
        pipe.receive(time.monotonic() + 0.02)
    with pytest.raises(TimeoutError):
        pipe.receive(time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        pipe.send(Packet({}, {"w": np.zeros(10_000_000, np.float32)}), time.monotonic() + 0.02)


@pytest.mark.parametrize(
    "packet",
    [
        Packet({}, {"w": np.zeros(3)}),
        Packet({}, {"w": np.zeros(3, np.float32)}, raw=b"1"),
        Packet({"text": "x" * MOST_HEAD_BYTES}),
    ],
)
def test_what_may_not_be_sent_is_not_sent(ends: tuple[socket.socket, Pipe], packet: Packet) -> None:
    raw, pipe = ends
    with pytest.raises(ValueError, match="packet"):
        pipe.send(packet)
    raw.setblocking(False)
    with pytest.raises(BlockingIOError):
        raw.recv(1)
