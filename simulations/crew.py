"""Crew: processes that share one simulation's work, this one among them. One thread each; no copy of what is large.

They are forked from this process when all that they need is loaded, so that records, models and mapped memory are the
same pages for all. What passes between them are orders and results, lines of JSON. An order gives the same result
whoever carries it out: so results do not depend on how many processes there are, nor on who is quicker; and the orders
of one that dies are carried out again.
"""

import contextlib
import ctypes
import gc
import json
import logging
import os
import selectors
import signal
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from .undisturbed import undisturbed

Order = dict[str, Any]
Result = dict[str, Any]
Work = Callable[[Order], Result]

# Orders that a worker has before it, so that it need not wait for the next one while this process is busy.
_AHEAD = 2
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("privet.node")


def can_fork() -> bool:
    """Whether processes can be forked here: elsewhere than on Linux system libraries do not stand it."""
    return sys.platform == "linux"


@dataclass(slots=True)
class _Worker:
    """A forked process: its end of a socket, and the tickets that it has before it, the oldest first."""

    pid: int
    socket: socket.socket
    tickets: deque[int] = field(default_factory=deque)
    partial: bytes = b""


class Crew:
    """Carries out orders by `work`. `processes`: how many, this one included. Leave the context to end the others."""

    def __init__(self, work: Work, processes: int) -> None:
        self._work = work
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._orders: dict[int, Order] = {}  # those that have no result yet
        self._waiting: deque[int] = deque()  # of them, those that nobody has before him
        self._results: dict[int, Result] = {}
        self._given = 0
        self._is_frozen = processes > 1
        if processes > 1:
            with undisturbed():
                gc.collect()
                gc.freeze()  # what exists now is no child's to clean up
                for _ in range(processes - 1):
                    self._fork()

    def __len__(self) -> int:
        return len(self._workers) + 1

    @property
    def most_open(self) -> int:
        """How many open orders keep everybody at work, also while the oldest one is waited for.

        With more, only more would be lost with this process.
        """
        return (_AHEAD + 1) * len(self._workers) + (2 if self._workers else 1)

    def give(self, order: Order) -> int:
        """An order, which somebody carries out; gives the ticket for its result."""
        with undisturbed():
            ticket = self._given
            self._given += 1
            self._orders[ticket] = order
            self._waiting.append(ticket)
            self._hand_out()
            return ticket

    def wait(self, ticket: int) -> None:
        """Return when the result of an order is there; carries orders out meanwhile that nobody else has before him.

        Ctrl-C ends the waiting and loses nothing.
        """
        if ticket not in self._orders and ticket not in self._results:
            raise ValueError("nothing was ordered, or it was taken")
        while ticket not in self._results:
            if not self._waiting and self._workers:
                self._selector.select()
            with undisturbed():
                self._listen()
                self._hand_out()
            if ticket not in self._results and self._waiting:
                self._carry_out(self._waiting[0])

    def only_waits(self, ticket: int) -> bool:
        """Whether `wait` would do nothing here but wait."""
        with undisturbed():
            self._listen()
            return ticket not in self._results and not self._waiting

    def take(self, ticket: int) -> Result:
        """The result of an order, once; see `wait`."""
        self.wait(ticket)
        return self._results.pop(ticket)

    def close(self) -> None:
        """End the other processes."""
        with undisturbed():
            for worker in list(self._workers):
                self._bury(worker)
            self._selector.close()
            if self._is_frozen:
                gc.unfreeze()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a progress bar's thread, which no child waits for
            pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says what becomes of Ctrl-C
                _die_with_parent()
                for end in (ours, *(worker.socket for worker in self._workers)):
                    end.close()  # or the others' sockets would stay open when the first process is gone
                _serve(theirs, self._work)
            finally:
                os._exit(0)
        theirs.close()
        worker = _Worker(pid, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _carry_out(self, ticket: int) -> None:
        result = self._work(self._orders[ticket])
        with undisturbed():
            self._waiting.remove(ticket)
            del self._orders[ticket]
            self._results[ticket] = result

    def _hand_out(self) -> None:
        for ahead in range(_AHEAD):  # the last one that waits is for who is free first, which may be this process
            for worker in list(self._workers):
                if len(self._waiting) > ahead and len(worker.tickets) <= ahead:
                    self._send(worker, self._waiting.popleft())

    def _send(self, worker: _Worker, ticket: int) -> None:
        worker.tickets.append(ticket)
        try:
            worker.socket.sendall(json.dumps([ticket, self._orders[ticket]]).encode() + b"\n")
        except OSError:
            self._bury(worker)

    def _listen(self) -> None:
        """Take in the results that have come."""
        for key, _ in self._selector.select(0) if self._workers else ():
            worker: _Worker = key.data
            try:
                content = worker.socket.recv(_READ_BYTES)
            except OSError:
                content = b""
            if not content:
                log.warning("process %d has ended; what it was at is done again", worker.pid)
                self._bury(worker)
                continue
            *lines, worker.partial = (worker.partial + content).split(b"\n")
            for ticket, result in map(json.loads, lines):
                worker.tickets.remove(ticket)
                del self._orders[ticket]
                self._results[ticket] = result

    def _bury(self, worker: _Worker) -> None:
        """It is gone, or to go: what it had before it is anybody's again."""
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.socket.close()
        self._waiting.extendleft(reversed(worker.tickets))
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # who ignores SIGCHLD has nobody to wait for
            os.waitpid(worker.pid, 0)


def _serve(end: socket.socket, work: Work) -> None:
    """A child's life: order after order, until nobody is there to give any."""
    with end.makefile("rwb") as stream:
        for line in stream:
            ticket, order = json.loads(line)
            stream.write(json.dumps([ticket, work(order)]).encode() + b"\n")
            stream.flush()


def _die_with_parent() -> None:
    """A child that waits for nothing any more, stopped or hung, ends when the first process does (prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
