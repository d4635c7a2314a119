"""Crew: processes that share one simulation's work, this one among them. One thread each; no copy of what is large.

They are forked from this process when all that they need is loaded, so that records, models and mapped memory are the
same pages for all. What passes between them are orders and results, in JSON. Orders lie in a queue, from which whoever
is free takes the next: this process too, where it would only wait. An order gives the same result whoever carries it
out: so results do not depend on how many processes there are, nor on who is quicker; and what a process was at that
dies is carried out again.
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
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .order_queue import Order, OrderQueue
from .undisturbed import undisturbed

Result = dict[str, Any]
Work = Callable[[Order], Result]

_READ_BYTES = 1 << 16
# How long a process may be at taking an order, which takes no time: then it was stopped, and does nothing any more.
_PATIENCE_SECONDS, _MOMENT_SECONDS = 5.0, 0.01
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("privet.node")


def can_fork() -> bool:
    """Whether processes can be forked here: elsewhere than on Linux system libraries do not stand it."""
    return sys.platform == "linux"


@dataclass(slots=True)
class _Worker:
    """A forked process: its end of a socket, and the ticket of what it is at, as far as it was heard."""

    pid: int
    socket: socket.socket
    ticket: int | None = None
    partial: bytes = b""


class Crew:
    """Carries out orders by `work`. `processes`: how many, this one included. Leave the context to end the others."""

    def __init__(self, work: Work, processes: int) -> None:
        self._work = work
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._orders: dict[int, Order] = {}  # those that have no result yet
        self._queue = OrderQueue() if processes > 1 else None
        self._waiting: deque[int] = deque()  # of the orders, those that are not in the queue, nor at anybody
        self._results: dict[int, Result] = {}
        self._given = 0
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
        return 3 * len(self._workers) + (2 if self._workers else 1)

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
        """Return when the result of an order is there; carries orders out meanwhile that nobody has taken.

        Ctrl-C ends the waiting and loses nothing.
        """
        if ticket not in self._orders and ticket not in self._results:
            raise ValueError("nothing was ordered, or it was taken")
        while ticket not in self._results:
            with undisturbed():
                self._listen()
                own = self._next() if ticket not in self._results else None
            if own is not None:
                self._carry_out(own)
            elif ticket not in self._results:
                self._selector.select()

    def only_waits(self, ticket: int) -> bool:
        """Whether `wait` would do nothing here but wait."""
        with undisturbed():
            self._listen()
            has_next = self._waiting or (self._queue is not None and not self._queue.is_empty)
            return ticket not in self._results and not has_next

    def take(self, ticket: int) -> Result:
        """The result of an order, once; see `wait`."""
        self.wait(ticket)
        return self._results.pop(ticket)

    def close(self) -> None:
        """End the other processes."""
        with undisturbed():
            for worker in list(self._workers):
                self._bury(worker)
            self._waiting = deque(sorted(self._orders))  # whoever still asks for one carries it out himself
            if self._queue is not None:
                self._queue.close()
                self._queue = None
                gc.unfreeze()
            self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fork(self) -> None:
        assert self._queue is not None
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
                _serve(self._queue, theirs, self._work)
            finally:
                os._exit(0)
        theirs.close()
        ours.setblocking(False)
        worker = _Worker(pid, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _next(self) -> int | None:
        """The ticket of what this process is to carry out, if there is anything; it is among the waiting."""
        if not self._waiting and self._queue is not None:
            ticket = self._queue.take()
            if ticket is not None:
                self._waiting.append(ticket)
        return self._waiting[0] if self._waiting else None

    def _carry_out(self, ticket: int) -> None:
        result = self._work(self._orders[ticket])
        with undisturbed():
            self._waiting.remove(ticket)
            del self._orders[ticket]
            self._results[ticket] = result

    def _hand_out(self) -> None:
        if self._queue is None or not self._workers:
            return
        while self._waiting and self._queue.put(self._waiting[0], self._orders[self._waiting[0]]):
            self._waiting.popleft()

    def _listen(self) -> None:
        """Take in the results that have come."""
        ready = self._selector.select(0) if self._workers else ()
        gone = [key.data for key, _ in ready if not self._is_heard(key.data)]
        for worker in gone:
            log.warning("process %d has ended; what it was at is done again", worker.pid)
            self._bury(worker)
        if gone:
            self._take_back()
        self._hand_out()

    def _is_heard(self, worker: _Worker) -> bool:
        """Take in all that a worker has said; False where it is gone."""
        while True:
            try:
                content = worker.socket.recv(_READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not content:
                return False
            *lines, worker.partial = (worker.partial + content).split(b"\n")
            for ticket, *results in map(json.loads, lines):
                worker.ticket = None if results else ticket
                if results:
                    del self._orders[ticket]
                    self._results[ticket] = results[0]

    def _take_back(self) -> None:
        """What nobody alive is known to be at is to be handed out, again."""
        assert self._queue is not None
        until = time.monotonic() + _PATIENCE_SECONDS
        while not self._queue.stop():  # somebody is taking something, and will have said so
            self._hear_all()
            self._selector.select(_MOMENT_SECONDS)
            if time.monotonic() > until:  # he was stopped
                for worker in list(self._workers):
                    self._bury(worker)
        self._hear_all()
        while self._queue.take() is not None:
            pass
        self._queue.go_on()
        self._waiting = deque(sorted(self._orders.keys() - {worker.ticket for worker in self._workers}))

    def _hear_all(self) -> None:
        for worker in self._workers:
            self._is_heard(worker)  # who is gone by now is found so when he is listened to next

    def _bury(self, worker: _Worker) -> None:
        """It is gone, or to go."""
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # who ignores SIGCHLD has nobody to wait for
            os.waitpid(worker.pid, 0)


def _serve(queue: OrderQueue, end: socket.socket, work: Work) -> None:
    """A child's life: it says what it takes, and what came of it, until nobody is there to give any more."""
    for ticket, order in queue.taken(lambda ticket: end.sendall(json.dumps([ticket]).encode() + b"\n")):
        end.sendall(json.dumps([ticket, work(order)]).encode() + b"\n")


def _die_with_parent() -> None:
    """A child that waits for nothing any more, stopped or hung, ends when the first process does (prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
