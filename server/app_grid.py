"""AppGrid: the Grid that an unmodified Flower app is given. It behaves as Flower's own grids do.

1. Answers come as a list: apps count them, and read them twice.
2. A message lives as long as its `ttl`. What has no answer by then gets Flower's error for it, as from a SuperLink.
3. A run that is stopped ends the app by Flower's own exception, which no `except Exception` of an app holds back.
4. The record `privet` carries the signed submission. An app that sends a record of that name is told so.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from ..privacy.channel import words
from ..privacy.channel.flower import Run, RunNotRunningException
from ..privacy.errors import InterruptedRunError, UsageError
from .grid import envelope
from .replies import Failure, failure_of

# Told which node gave no answer that can be used, and why.
Note = Callable[[int, Failure], None]


class AppGrid(Grid):
    """A run's grid, for an app. `clock`: Unix seconds, as Flower stamps its messages."""

    def __init__(self, grid: Grid, note: Note, clock: Callable[[], float] = time.time) -> None:
        self._grid = grid
        self._note = note
        self._clock = clock
        self._pushed: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """The run is whose grid this is; another one is not taken."""

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the server to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected and allow the app."""
        with _ended_by_flowers_own():
            return list(self._grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The answers, and an error for each message whose time to live ended without one."""
        messages = [_checked(message) for message in messages]
        longest = max((self._left(message) for message in messages), default=0.0)
        seconds = longest if timeout is None else min(timeout, longest)
        with _ended_by_flowers_own():
            replies = list(self._grid.send_and_receive(messages, timeout=seconds))
        for reply in replies:
            self._look_at(reply)
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        missing = [message for message in messages if message.metadata.message_id not in answered]
        return replies + [self._expired(message) for message in missing if self._left(message) <= 0]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Ask; the answers wait to be pulled."""
        pushed: list[str] = []
        for message in messages:
            with _ended_by_flowers_own():
                pushed += self._grid.push_messages([_checked(message)])
            self._pushed[pushed[-1]] = envelope(message)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers that have come to these messages, each once; an error where none can come any more."""
        asked = list(message_ids)
        with _ended_by_flowers_own():
            replies = list(self._grid.pull_messages(asked))
        for reply in replies:
            self._pushed.pop(reply.metadata.reply_to_message_id, None)
            self._look_at(reply)
        expired = [one for one in asked if one in self._pushed and self._left(self._pushed[one]) <= 0]
        return replies + [self._expired(self._pushed.pop(message_id)) for message_id in expired]

    def _left(self, message: Message) -> float:
        """Seconds that a message lives."""
        return message.metadata.created_at + message.metadata.ttl - self._clock()

    def _look_at(self, reply: Message) -> None:
        failure = failure_of(reply)
        if failure is not None:
            self._note(reply.metadata.src_node_id, failure)

    def _expired(self, message: Message) -> Message:
        self._note(message.metadata.dst_node_id, Failure(words.NO_ANSWER))
        return Message(Error(words.EXPIRED, words.NO_ANSWER), reply_to=message)


def _checked(message: Message) -> Message:
    if message.has_content() and words.SEAL in message.content:
        raise UsageError(
            f"the app sends a record named {words.SEAL!r}, which carries the signed submission",
            "give the record another name in the app",
        )
    return message


@contextmanager
def _ended_by_flowers_own() -> Iterator[None]:
    try:
        yield
    except InterruptedRunError as stopped:
        raise RunNotRunningException from stopped
