"""CohortGrid: a LocalGrid whose nodes train in groups, by a crew.

Who is in a group follows from the nodes that are asked, and not from what takes how long, nor from how many processes
there are: so one seed gives one model. A node of it that does not train, because it refuses or has answered before,
leaves the batch, which changes what the others compute by rounding alone. Groups begin one after the other, while those
before them are trained; they finish, and their replies arrive, in that order too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ..client.app import Asked, Reader, begun_together, finished_together
from ..client.node import Begun
from ..client.participant import Participant
from ..privacy.channel import words
from ..privacy.parameters import Parameters
from .cohort.trainer import groups_of
from .cohort_work import CohortWork
from .crew import Crew
from .grid import Fault, LocalGrid
from .order_queue import Order
from .undisturbed import often_undisturbed, undisturbed

_TOGETHER = (words.TRAIN, words.EVALUATE)


@dataclass(frozen=True, slots=True, eq=False)
class Party:
    """A simulated node, and how many records it trains with."""

    node: Participant
    records: int


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Nodes that were asked, what was ordered for those that began, and the ticket for what comes of it."""

    asked: list[Asked]
    order: Order | None
    ticket: int | None

    @property
    def rows(self) -> Sequence[int]:
        """Where the updates lie of those that began."""
        rows: Sequence[int] = self.order["rows"] if self.order is not None else ()
        return rows


class CohortGrid(LocalGrid):
    """`parties` by node id; `ordered` of them form a group. `is_summed`: no update is handed over, but their sum.

    With a fault every update travels, since something may befall it. `meanwhile` is done while groups are trained.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: Mapping[int, Context],
        parties: Mapping[int, Party],
        work: CohortWork,
        crew: Crew,
        ordered: int,
        *,
        is_summed: bool,
        fault: Fault | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(app, contexts, fault)
        self._parties = dict(parties)
        self._work = work
        self._crew = crew
        self._ordered = ordered
        self._meanwhile = meanwhile
        self._read = Reader()
        self._is_summed = is_summed and fault is None
        self._row_of: dict[int, int] = {}  # by node, of the answers whose update is not in them
        self._added: list[tuple[int, float]] = []
        self._has_early = False  # whether some were added before all had come
        self._open = deque[_Group]()  # those that have begun and not finished

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """See LocalGrid."""
        asked = list(messages)
        yield from super().send_and_receive(message for message in asked if not self._is_grouped(message))
        for kind in _TOGETHER:
            those = [m for m in asked if m.metadata.message_type == kind and self._is_grouped(m)]
            if those:
                with often_undisturbed():
                    yield from self._answered(those)

    def holds(self, reply: Message) -> bool:
        """See federation.Held."""
        return reply.metadata.src_node_id in self._row_of and not reply.has_error()

    def update_of(self, node_id: int) -> Parameters:
        """See gathered.Held."""
        return self._work.update_in(self._row_of[node_id])

    def add(self, node_id: int, share: float) -> None:
        """See aggregation.HeldUpdates."""
        self._added.append((self._row_of[node_id], share))

    def total(self) -> dict[str, NDArray[np.float64]] | None:
        """See aggregation.HeldUpdates."""
        if not (self._added or self._has_early):
            return None
        rows, shares = self._taken()
        orders = self._work.sum_orders(rows, shares, len(self._crew)) if rows else []
        for ticket in [self._crew.give(order) for order in orders]:
            self._crew.take(ticket)
        self._has_early = False
        return self._work.taken_sum(is_ordered=bool(orders))

    def _taken(self) -> tuple[list[int], list[float]]:
        """What is to be added, and is not yet: rows and shares."""
        added, self._added = self._added, []
        return [row for row, _ in added], [share for _, share in added]

    def _add_meanwhile(self, group: "_Group") -> None:
        """Add what has come, if nothing else is to be done here until the group is trained."""
        if self._added and group.ticket is not None and self._crew.only_waits(group.ticket):
            with undisturbed():
                self._work.add_now(*self._taken())
                self._has_early = True

    def _is_grouped(self, message: Message) -> bool:
        return message.metadata.message_type in _TOGETHER and message.metadata.dst_node_id in self._parties

    def _answered(self, messages: list[Message]) -> Iterator[Message]:
        record = messages[0].content.get(words.ARRAYS)
        if isinstance(record, ArrayRecord):
            self._work.load(self._read(record))
        config = messages[0].content.get(words.CONFIG)
        if messages[0].metadata.message_type == words.TRAIN and isinstance(config, ConfigRecord):
            number = config[words.ROUND]
            assert isinstance(number, int), "the federation wrote it"
            self._work.expect(number, len(messages))
        sizes = [self._parties[message.metadata.dst_node_id].records for message in messages]
        groups = deque(groups_of(sizes, self._ordered))
        try:
            while groups or self._open:
                while groups and len(self._open) < self._crew.most_open:
                    with undisturbed():
                        self._begin([messages[place] for place in groups.popleft()])
                self._meanwhile()
                group = self._open[0]
                self._add_meanwhile(group)
                self._await(group)
                with undisturbed():
                    replies, is_held = self._finished(group)
                    self._open.popleft()
                yield from self._handed_on(group.asked, replies, group.rows if is_held else ())
        finally:
            self.close()

    def close(self) -> None:
        """Whoever asked has gone away: what has begun is kept for when he asks again."""
        while self._open:
            self._await(self._open[0])
            with undisturbed():
                self._finished(self._open.popleft())

    def _begin(self, messages: list[Message]) -> None:
        for message in messages:
            self._number(message)
        nodes = ((self._parties[message.metadata.dst_node_id].node, message) for message in messages)
        asked = begun_together(nodes, self._read)
        those = [(one.node, one.step) for one in asked if isinstance(one.step, Begun)]
        order = self._work.order(those) if those else None
        self._open.append(_Group(asked, order, self._crew.give(order) if order is not None else None))

    def _await(self, group: "_Group") -> None:
        if group.ticket is not None:
            self._crew.wait(group.ticket)

    def _finished(self, group: "_Group") -> tuple[list[Message], bool]:
        """The replies; and whether their updates are held, and not in them."""
        if group.order is None or group.ticket is None:
            return finished_together(group.asked, None), False
        result = self._crew.take(group.ticket)
        is_held = self._is_summed and bool(result.get("plain"))
        return finished_together(group.asked, self._work.carried(group.order, result), is_held), is_held

    def _handed_on(self, asked: list[Asked], replies: list[Message], rows: Iterable[int]) -> Iterator[Message]:
        """Reply after reply; `rows`: where the updates lie of those that have just been trained, if they are held."""
        held = iter(rows)
        for one in asked:
            node_id, reply = one.message.metadata.dst_node_id, self._faulted(one.message, replies.pop(0))
            self._row_of.pop(node_id, None)
            if isinstance(one.step, Begun) and (row := next(held, None)) is not None:
                self._row_of[node_id] = row
            if reply is not None:
                yield reply
            del reply  # or it would be held while the next one is used
