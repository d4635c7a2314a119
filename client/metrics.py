"""A node's metrics: read from its party, its ledger and its disk when somebody scrapes them.

Counted while it runs is what passes between link and party: requests, answers, refusals by code. The server sees these
as well. Nothing else that a task does is shown: no loss, no size of a batch, no epsilon, no time that training took.
docs/deploy.md lists the names; a test compares.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..privacy.budget.ledger import connected
from ..privacy.channel import words
from ..privacy.channel.member import Member
from ..privacy.errors import REFUSAL_CODES, LedgerError
from ..privacy.home import Home
from .link import Asked, Party, Presence

if TYPE_CHECKING:
    from flwr.app import Message

    from .party import NodeParty

_CHILDREN = "/proc/self/task"  # of the kernel; elsewhere the processes are not counted
_FAILED = "app-failed"


@dataclass(slots=True)
class Tally:
    """What is counted as it passes. `refused`: answers by code. `contact`: Unix seconds, when the server was there."""

    requests: int = 0
    answers: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    is_connected: bool = False
    contact: float | None = None


class CountedParty:
    """A party, whose requests and answers are counted on their way. See link.Party."""

    def __init__(self, party: Party, tally: Tally) -> None:
        self._party = party
        self._tally = tally

    def presence(self) -> Presence:
        """See link.Party."""
        return self._party.presence()

    def take(self, asked: Asked) -> None:
        """See link.Party."""
        self._tally.requests += 1

        def answer(reply: "Message") -> None:
            self._count(reply)
            asked.answer(reply)

        self._party.take(replace(asked, answer=answer))

    def drop(self, ask_id: bytes) -> None:
        """See link.Party."""
        self._party.drop(ask_id)

    def stamped(self, message: "Message") -> "Message":
        """See link.Party."""
        return self._party.stamped(message)

    def welcomed(self, countersigned: str) -> None:
        """See link.Party."""
        self._party.welcomed(countersigned)

    def deny(self, keys: frozenset[str]) -> None:
        """See link.Party."""
        self._party.deny(keys)

    def told(self, state: str, why: str = "") -> None:
        """See link.Party."""
        tally = self._tally
        if state == "connected" or tally.is_connected:
            tally.contact = time.time()
        tally.is_connected = state == "connected"
        self._party.told(state, why)

    def _count(self, reply: "Message") -> None:
        self._tally.answers += 1
        if reply.has_error():
            reason = reply.error.reason if reply.error.code == words.REFUSED else _FAILED
            code = str(reason).partition(words.DISCLOSED)[0]
            self._tally.refused[code if code in REFUSAL_CODES else _FAILED] += 1


class NodeMetrics(Collector):
    """What the page shows."""

    def __init__(self, home: Home, member: Member, party: "NodeParty", tally: Tally) -> None:
        self._home = home
        self._member = member
        self._party = party
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now. Called in the page's own threads."""
        build = GaugeMetricFamily("privet_build", "The version that runs", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield from self._connection()
        yield from self._work()
        yield from self._machine()

    def _connection(self) -> Iterator[Metric]:
        tally = self._tally
        yield _gauge("privet_node_connected", "Whether the stream to the server is open", tally.is_connected)
        contact = time.time() if tally.is_connected else tally.contact
        if contact is not None:
            yield _gauge(
                "privet_node_last_contact_timestamp_seconds", "When the server was there last, Unix time", contact
            )
        yield _gauge(
            "privet_node_certificate_expiry_timestamp_seconds",
            "When the node's certificate ends, Unix time",
            self._member.certificate.not_after.timestamp(),
        )
        yield _gauge("privet_node_paused", "Whether it takes part in nothing now", self._party.orders.is_paused)
        yield _gauge(
            "privet_node_ledger_behind", "Whether the server has witnessed more than the ledger holds",
            bool(self._party.is_behind),
        )  # fmt: skip

    def _work(self) -> Iterator[Metric]:
        tally = self._tally
        yield _gauge("privet_node_runs", "Runs that are served, or were within ten minutes", len(self._party.works()))
        yield CounterMetricFamily("privet_node_requests", "Requests of the server", value=tally.requests)
        yield CounterMetricFamily("privet_node_answers", "Answers, refusals among them", value=tally.answers)
        refusals = CounterMetricFamily("privet_node_refusals", "Refusals by code", labels=["code"])
        for code, number in sorted(tally.refused.copy().items()):
            refusals.add_metric([code], number)
        yield refusals

    def _machine(self) -> Iterator[Metric]:
        processes = _children()
        if processes is not None:
            yield _gauge("privet_node_processes", "Processes that serve runs, or wait for their next round", processes)
        entries = _entries(self._home)
        if entries is not None:
            yield _gauge("privet_node_ledger_entries", "Entries of the ledger", entries)
        free = shutil.disk_usage(self._home.root).free
        yield _gauge("privet_node_disk_free_bytes", "Free where the node keeps its state", free)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _entries(home: Home) -> int | None:
    """None where there is no ledger yet, or it cannot be read now."""
    if not home.has_ledger():
        return None
    try:
        with closing(connected(home.ledger, read_only=True)) as ledger:
            try:
                return int(ledger.execute("SELECT max(sequence) FROM entries").fetchone()[0] or 0)
            except ledger.Error:
                return None
    except LedgerError:
        return None


def _children() -> int | None:
    """How many processes this one has started and not yet buried; None where the kernel does not say."""
    found = None
    for path in Path(_CHILDREN).glob("*/children"):
        try:
            found = (found or 0) + len(path.read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return found
