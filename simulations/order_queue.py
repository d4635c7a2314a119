"""OrderQueue: what forked processes are to do, each order for whoever is free first.

An order is one packet of a socket, which the system hands to one reader. Whoever takes one says so under a lock, which
the system takes from who dies: so it is known what somebody has taken, and what nobody has.
"""

import fcntl
import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .mapped import nameless

Order = dict[str, Any]

# Bytes of an order, at most, so that two fit into a socket's buffer under Linux's own settings (wmem_max, socket(7)).
# A group's has two thousand.
_LONGEST = 1 << 16


class OrderQueue:
    """Begin it, then fork. The first process puts orders in, under tickets, and may `take` some; others use `taken`."""

    def __init__(self) -> None:
        self._ours, self._all = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._all):
            end.setblocking(False)
        self._lock = nameless()

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

    def take(self) -> int | None:
        """The oldest ticket; None where there is none. For the process that has put it there."""
        try:
            ticket: int = json.loads(self._all.recv(_LONGEST))[0]
        except BlockingIOError:
            return None
        return ticket

    def taken(self, say: Callable[[int], object]) -> Iterator[tuple[int, Order]]:
        """For another process: tickets and orders as they come, until the first process is gone.

        `say`: tells the first process what was taken, while the lock is held.
        """
        self._ours.close()  # or nobody would notice that the first process is gone
        while True:
            _wait_for(self._all)
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            try:
                packet = self._all.recv(_LONGEST)
                if not packet:
                    return
                ticket, order = json.loads(packet)
                say(ticket)
            except BlockingIOError:
                continue  # somebody else was quicker
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)
            yield ticket, order

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to take just now."""
        return not _wait_for(self._all, milliseconds=0)

    def stop(self) -> bool:
        """Let nobody else take anything, if nobody is taking just now; whoever has taken something has said so then."""
        with suppress(BlockingIOError, PermissionError):  # what lockf(3) may say
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def go_on(self) -> None:
        """Undo `stop`."""
        fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it."""
        for part in (self._ours, self._all, self._lock):
            part.close()


def _wait_for(end: socket.socket, milliseconds: int | None = None) -> bool:
    """Until there is something to read: whether there is."""
    poll = select.poll()  # which knows descriptors above 1023 too
    poll.register(end, select.POLLIN)
    return bool(poll.poll(milliseconds))
