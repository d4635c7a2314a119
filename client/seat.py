"""A seat: where one run is served at a node, in a thread of its own, one request after the other.

A run that trains for an hour keeps no other waiting, and a task that fails takes nobody with it. Each seat has its own
connection to the institution's ledger, which all seats share.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ConfigRecord, Error, Message

from ..privacy.channel import words
from ..privacy.errors import PrivetError, Refusal, RefusedError
from .app import reason_of
from .link import Asked

log = logging.getLogger("privet.node")


class Served(Protocol):
    """What a seat asks: the node of a run, or an app."""

    def answer(self, message: Message) -> Message:
        """The reply. May raise RefusedError, whose code is the reply then."""
        ...

    def prepare(self, message: Message) -> None:
        """This request was answered: make ready what the next one needs. It may take long, and raises nothing."""
        ...

    def cancel(self, why: str) -> None:
        """End what is being done. From any thread."""
        ...

    def rest(self) -> bool:
        """Nothing was asked for long: give memory back. False where something is kept that a next request needs."""
        ...

    def close(self) -> None:
        """Nothing more is asked."""
        ...


@dataclass(slots=True)
class Work:
    """What a seat is doing, for people to see."""

    run_id: str
    what: str = ""
    is_busy: bool = False
    answered: int = 0
    refused: str = ""


class Seat:
    """Serves a run with what `open_served` makes, when the first request has come, in the seat's own thread.

    `check`: raises RefusedError where the institution's orders are against a request whose turn has come.
    """

    def __init__(
        self,
        run_id: str,
        open_served: Callable[[Message], Served],
        changed: Callable[[], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.work = Work(run_id)
        self._check = check
        self._open_served = open_served
        self._changed = changed
        self._served: Served | None = None
        self._asked: queue.Queue[Asked | None] = queue.Queue()
        self._dropped: set[bytes] = set()
        self._thread = threading.Thread(target=self._serve, name=f"seat-{run_id}", daemon=True)
        self._thread.start()

    def put(self, asked: Asked) -> None:
        """One more request."""
        self._asked.put(asked)

    def drop(self, ask_id: bytes) -> None:
        """Do not begin with this request, if it was not begun."""
        self._dropped.add(ask_id)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done or made ready, and nothing is waiting."""
        return self._asked.unfinished_tasks == 0

    def cancel(self, why: str) -> None:
        """End what it is doing. From any thread."""
        if self._served is not None:
            self._served.cancel(why)

    def rest(self) -> bool:
        """Give memory back where nothing is asked; whether nothing is lost when the seat is closed."""
        return self._served is None or self._served.rest()

    def close(self, timeout: float | None = None) -> None:
        """End the thread, after what it is doing."""
        self._asked.put(None)
        self._thread.join(timeout)

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            if asked.id in self._dropped:
                self._dropped.discard(asked.id)
            else:
                self._serve_one(asked)
            self._asked.task_done()
            del asked
        if self._served is not None:
            self._served.close()

    def _serve_one(self, asked: Asked) -> None:
        self.work.is_busy, self.work.what = True, _said(asked.message)
        self._changed()
        reply = self._replied(asked.message)
        self.work.is_busy = False
        self.work.answered += 1
        self._changed()
        asked.answer(reply)
        if self._served is not None and not reply.has_error():
            self._served.prepare(asked.message)
        if self._asked.empty():
            self._dropped.clear()  # they were of requests that had begun

    def _replied(self, message: Message) -> Message:
        reply = replied(message, self.work.run_id, self._answer)
        if reply.has_error() and reply.error.code == words.REFUSED:
            self.work.refused = str(reply.error.reason)
        return reply

    def _answer(self, message: Message) -> Message:
        self._check()
        if self._served is None:
            self._served = self._open_served(message)
        return self._served.answer(message)


def replied(message: Message, run_id: str, answer: Callable[[Message], Message]) -> Message:
    """The reply that `answer` makes, or one code of the closed list; what happened stays in the local log."""
    try:
        return answer(message)
    except RefusedError as refusal:
        return refused(message, refusal, run_id)
    except PrivetError as error:
        log.error("run %s: no answer: %s; try: %s", run_id, error.message, error.remedy)
    except Exception:
        log.exception("run %s: no answer could be made", run_id)
    return Message(Error(words.APP_RAISED, words.APP_FAILED), reply_to=message)


def refused(message: Message, refusal: RefusedError, run_id: str) -> Message:
    """The reply that names the refusal's code, and what the institution discloses of it."""
    log.warning("run %s: %s: %s", run_id, refusal.code, refusal.message)
    return Message(Error(words.REFUSED, reason_of(refusal)), reply_to=message)


def refusal(code: Refusal, why: str) -> RefusedError:
    """A refusal by the institution's own orders."""
    return RefusedError(code, why, "ask the institution")


def _said(message: Message) -> str:
    """What a request asks, in a word or two."""
    config = message.content.get(words.CONFIG)
    number = config.get(words.ROUND) if isinstance(config, ConfigRecord) else None
    kind = message.metadata.message_type
    return f"{kind} round {number}" if type(number) is int and number else kind
