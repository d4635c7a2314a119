"""CohortGrid: a LocalGrid whose nodes train in groups. Who is in a group follows from the nodes that are asked.

So one seed gives one model: neither what a node answers nor whether it has answered before changes anybody's company.
"""

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..client.app import Together, replies_together
from ..client.node import Node
from ..privacy.channel import words
from .cohort.trainer import groups_of
from .grid import Fault, LocalGrid

_TOGETHER = (words.TRAIN, words.EVALUATE)


class CohortGrid(LocalGrid):
    """`nodes` by id, and how many records each trains with; `at_once` of them are trained by `together`."""

    def __init__(
        self,
        app: ClientApp,
        contexts: Mapping[int, Context],
        nodes: Mapping[int, tuple[Node, int]],
        together: Together,
        at_once: int,
        fault: Fault | None = None,
    ) -> None:
        super().__init__(app, contexts, fault)
        self._nodes = dict(nodes)
        self._together = together
        self._at_once = at_once

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """See LocalGrid; a group is done before the next is asked, and all its answers are kept before one arrives."""
        asked = list(messages)
        yield from super().send_and_receive(message for message in asked if not self._is_grouped(message))
        for kind in _TOGETHER:
            those = [m for m in asked if m.metadata.message_type == kind and self._is_grouped(m)]
            sizes = [self._nodes[message.metadata.dst_node_id][1] for message in those]
            for group in groups_of(sizes, self._at_once):
                yield from self._replies_of([those[place] for place in group])

    def _is_grouped(self, message: Message) -> bool:
        return message.metadata.message_type in _TOGETHER and message.metadata.dst_node_id in self._nodes

    def _replies_of(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            self._number(message)
        asked = [(self._nodes[message.metadata.dst_node_id][0], message) for message in messages]
        replies = replies_together(asked, self._together)
        for message in messages:
            reply = self._faulted(message, replies.pop(0))
            if reply is not None:
                yield reply
            del reply  # or it would be held while the next one is used
