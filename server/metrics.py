"""The server's metrics: read from the hub, the book of runs and the certificates when somebody scrapes them.

Counted while it runs is only what nobody keeps: bytes on the nodes' streams, answers taken, calls that were refused.
No node has a name here, and nothing tells how long a node trained. docs/deploy.md lists the names; a test compares.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..privacy.channel.credentials import Peer
from ..privacy.errors import FederationError
from .asks import Arrived
from .link import Hub
from .run_record import RunState


@dataclass(slots=True)
class Tally:
    """What is counted as it passes. `refused`: calls by method."""

    sent: int = 0
    received: int = 0
    answers: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def refuse(self, method: str) -> None:
        """The gate refused a call of this method, which is one of the server's own."""
        self.refused[method] += 1


class CountedHub(Hub):
    """A hub that counts the bytes on its streams, and the answers that somebody waited for."""

    def __init__(self, tally: Tally, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tally = tally

    async def connect(self, context: Any, peer: Peer) -> None:
        """See Hub."""
        counted: Any = _Counted(context, self._tally)
        await super().connect(counted, peer)

    def answered(self, arrived: Arrived) -> None:
        """See Hub."""
        if arrived.message is not None and self.is_waited_for(arrived.ask):
            self._tally.answers += 1
        super().answered(arrived)


class _Counted:
    """A stream's context, whose frames are counted."""

    def __init__(self, context: Any, tally: Tally) -> None:
        self._context = context
        self._tally = tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        data = await self._context.read()
        if isinstance(data, bytes):
            self._tally.received += len(data)
        return data

    async def write(self, data: bytes) -> None:
        await self._context.write(data)
        self._tally.sent += len(data)


class Counts(Protocol):
    """The book of runs, as far as a page asks."""

    def counts(self) -> Mapping[RunState, int]:
        """How many runs are in each state; raise FederationError where the database cannot say."""
        ...


@dataclass(frozen=True, slots=True)
class Ends:
    """When the server's certificates end. `server` is renewed by itself, `issuer` by `privet federation reissue`."""

    server: Callable[[], datetime]
    issuer: datetime
    root: datetime


class ServerMetrics(Collector):
    """What the page shows."""

    def __init__(self, hub: Hub, tally: Tally, book: Counts, ends: Ends) -> None:
        self._hub = hub
        self._tally = tally
        self._book = book
        self._ends = ends
        self._asking = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now. Called in the page's own threads."""
        yield _labelled(GaugeMetricFamily, "privet_build", "The version that runs", "version", {__version__: 1})
        yield from self._nodes()
        yield from self._traffic()
        yield from self._runs()
        ends = {"server": self._ends.server(), "issuer": self._ends.issuer, "root": self._ends.root}
        yield _labelled(
            GaugeMetricFamily,
            "privet_server_certificate_expiry_timestamp_seconds",
            "When a certificate ends, Unix time",
            "certificate",
            {name: moment.timestamp() for name, moment in ends.items()},
        )

    def _nodes(self) -> Iterator[Metric]:
        views = self._hub.nodes()
        yield _gauge("privet_server_connected_nodes", "Nodes with an open stream", len(views))
        yield _gauge("privet_server_paused_nodes", "Connected nodes that take part in nothing now",
                     sum(view.is_paused for view in views))  # fmt: skip

    def _traffic(self) -> Iterator[Metric]:
        tally = self._tally
        yield _counter("privet_server_sent_bytes", "Bytes of frames written to nodes", tally.sent)
        yield _counter("privet_server_received_bytes", "Bytes of frames read from nodes", tally.received)
        yield _counter("privet_server_answers", "Answers of nodes that a run waited for", tally.answers)
        yield _labelled(
            CounterMetricFamily,
            "privet_server_refused_calls",
            "Calls that the gate refused",
            "method",
            dict(tally.refused),
        )
        room = self._hub.room
        yield _gauge("privet_server_room_used_bytes", "Bytes of answers on their way in, or being added up", room.used)
        yield _gauge("privet_server_room_bytes", "How many there may be at once", room.size)

    def _runs(self) -> Iterator[Metric]:
        counts = self._counted()
        yield _gauge("privet_server_database_up", "Whether the database answers", counts is not None)
        if counts is not None:
            states = {str(state): counts.get(state, 0) for state in RunState}
            yield _labelled(GaugeMetricFamily, "privet_server_runs", "Runs in the book", "state", states)

    def _counted(self) -> Mapping[RunState, int] | None:
        """None where the database fails, or still owes the answer to the scrape before."""
        if not self._asking.acquire(blocking=False):
            return None
        try:
            return self._book.counts()
        except FederationError:
            return None
        finally:
            self._asking.release()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _labelled(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    made = family(name, text, labels=[label])
    for value, number in values.items():
        made.add_metric([value], number)
    return made
