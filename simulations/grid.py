"""LocalGrid: Flower's Grid in this process. Any Flower ServerApp and ClientApp run on it, without a wire.

Replies are handed on one by one as they come to be, so that a server that adds them up holds one at a time. A node's
app is called with the very message that was sent: it must not change it, and privet's reads it through read-only
views. Drops, delays and lies are made by a `Fault`, which sees each reply on its way.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from ..privacy.channel.flower import Run, empty_run, identify_process

_APP_RAISED = 2  # flwr's own code for a ClientApp that raised

# Gives the reply that arrives (the same, another, one with an error), or None where none does.
Fault = Callable[[Message, Message], Message | None]


class LocalGrid(Grid):
    """Nodes of one process: a ClientApp and, for each node id, its Context."""

    def __init__(self, app: ClientApp, contexts: Mapping[int, Context], fault: Fault | None = None) -> None:
        self._app = app
        self._contexts = dict(contexts)
        self._fault = fault
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self.set_run(empty_run(1))

    def set_run(self, run: Run) -> None:
        """Set the run, also for strategies that build their own messages: Flower keeps it in the process."""
        self._run = run
        identify_process(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in the order in which they were given."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Each node's reply as soon as it is there. One node is done before the next is asked, so nothing times out."""
        for message in messages:
            reply = self._delivered(message)
            if reply is not None:
                yield reply
            del reply  # or it would be held while the next node trains

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Carry out the messages; their replies wait to be pulled."""
        message_ids = []
        for message in messages:
            reply = self._delivered(message)
            message_ids.append(message.metadata.message_id)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come to these messages, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def close(self) -> None:
        """Let go of what it holds: nothing, here."""

    def _delivered(self, message: Message) -> Message | None:
        self._number(message)
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return None
        try:
            reply = self._app(message, context)
        except Exception as error:
            reply = Message(Error(_APP_RAISED, type(error).__name__), reply_to=message)
        return self._faulted(message, reply)

    def _number(self, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = str(next(self._numbers))  # as Flower's own grids set it

    def _faulted(self, message: Message, reply: Message) -> Message | None:
        return self._fault(message, reply) if self._fault else reply


class AroundGrid(Grid):
    """A Grid around another, as it is. Who inherits from it sees the requests of a federation, and the replies."""

    def __init__(self, grid: Grid) -> None:
        self.inner = grid

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does."""
        return self.inner.send_and_receive(messages, timeout=timeout)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid does."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid does."""
        return self.inner.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid does."""
        return self.inner.get_node_ids()

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the grid does."""
        return self.inner.create_message(*args, **kwargs)

    @property
    def run(self) -> Run:
        """The grid's."""
        return self.inner.run

    def set_run(self, run: Run) -> None:
        """As the grid does."""
        self.inner.set_run(run)
