"""Asks: what a run has asked of nodes, and the mailbox where the answers arrive. Between a run's thread and the hub.

An ask is over when its answer has arrived, when the node is given up, or when nobody waits any more. Until then it
survives reconnects: the hub sends it again on the node's next stream.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from flwr.app import Message

from ..privacy.channel.frames import Outgoing


@dataclass(slots=True)
class Traffic:
    """Bytes of messages that passed for one run, counted where they pass."""

    sent: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One request to one node. `largest_answer`: bytes of arrays that the answer may have.

    `is_charged`: what is asked touches records, so the answer must bring the head of the node's ledger. `is_app`: the
    answer is an app's, of which nothing is known.
    """

    id: bytes
    node_id: int
    run_id: str
    request: Message
    outgoing: Outgoing
    mailbox: "Mailbox"
    largest_answer: int
    is_charged: bool
    is_app: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """An answer, or the end of waiting: `message` is None where the node was given up, for the reason in `lost`."""

    ask: Ask
    message: Message | None
    lost: str = ""
    release: Callable[[], None] = field(default=lambda: None)


class Mailbox:
    """Where the answers to some asks arrive, one by one. Each must be released before memory for others is free.

    `is_loose`: nobody knows when they are read, so they keep no other answer waiting.
    """

    def __init__(self, traffic: Traffic, is_loose: bool = False) -> None:
        self.traffic = traffic
        self._is_loose = is_loose
        self._arrived: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False

    def put(self, arrived: Arrived) -> None:
        """From the hub: an answer. It is let go at once where nobody reads any more."""
        if self._is_loose:
            arrived.release()
            arrived = replace(arrived, release=lambda: None)
        with self._lock:
            if not self._is_closed:
                self._arrived.put(arrived)
                return
        arrived.release()

    def interrupt(self) -> None:
        """Wake the reader with nothing: whoever runs is to stop."""
        self._arrived.put(None)

    def get(self, timeout: float | None) -> Arrived | None:
        """The next answer; None after `timeout` seconds, or when interrupted."""
        try:
            return self._arrived.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Nobody reads any more: let go of what has arrived."""
        with self._lock:
            self._is_closed = True
        for arrived in _drained(self._arrived):
            arrived.release()


def _drained(arrived: "queue.SimpleQueue[Arrived | None]") -> Iterable[Arrived]:
    while True:
        try:
            found = arrived.get_nowait()
        except queue.Empty:
            return
        if found is not None:
            yield found
