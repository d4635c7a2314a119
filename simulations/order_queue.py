"""OrderQueue: what forked processes are to do, each order for whoever is free first.

An order is one packet of a socket, which the system hands to one reader. Whoever takes one says so under a lock, that
the system takes from who dies: so it is always known what somebody has taken and what nobody has.
"""

import fcntl
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Order = dict[str, Any]

# Bytes of an order, at most: a socket's buffer holds one of these under Linux's own settings (wmem_max, socket(7)).
_LONGEST = 1 << 17


class OrderQueue:
    """Begin it, then fork. One process puts orders in, under tickets, the oldest first; all may take."""

    def __init__(self) -> None:
        self._ours, self._all = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._all):
            end.setblocking(False)
        self._lock = os.memfd_create("orders")

    def put(self, ticket: int, order: Order) -> bool:
        """Whether it was put: not where it is too long, or there is no room now."""
        packet = json.dumps([ticket, order]).encode()
        if len(packet) > _LONGEST:
            return False
        try:
            self._ours.send(packet)
        except OSError:
            return False
        return True

    def take(self) -> tuple[int, Order] | None:
        """The oldest ticket, and its order; None where there is none. For the process that knows what it has."""
        try:
            ticket, order = json.loads(self._all.recv(_LONGEST))
        except BlockingIOError:
            return None
        return ticket, order

    def taken(self, say: Callable[[int], object]) -> Iterator[tuple[int, Order]]:
        """For another process: tickets and orders as they come, until the first process is gone.

        `say`: tells the first process what was taken; nobody is elsewhere between taking and telling.
        """
        self._ours.close()  # or nobody would notice that the first process is gone
        while True:
            select.select([self._all], [], [])
            with self.nobody_takes():
                try:
                    packet = self._all.recv(_LONGEST)
                except BlockingIOError:
                    continue  # somebody else was quicker
                if not packet:
                    return
                ticket, order = json.loads(packet)
                say(ticket)
            yield ticket, order

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to take just now."""
        return not select.select([self._all], [], [], 0)[0]

    @contextmanager
    def nobody_takes(self) -> Iterator[None]:
        """No other process takes anything meanwhile, and whoever has, has said so."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it."""
        self._ours.close()
        self._all.close()
        os.close(self._lock)
