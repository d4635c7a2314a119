"""Participant: what the app asks of whoever takes part in a run. An institution's node is one (node.py); where whole
nodes are hidden by the server's noise, a node without a ledger of its own is another (central.py).
"""

from collections.abc import Sequence
from typing import Protocol

from ..privacy.attendance import Attendance
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.ledger import Entry
from ..privacy.budget.witness import Countersigned, Head
from .answers import Answer
from .node import Begun, Carried, Request


class Participant(Protocol):
    """See node.Node, method by method."""

    @property
    def name(self) -> str:
        """In the federation."""
        ...

    @property
    def dataset(self) -> DeclaredDataset:
        """What it declares, and may say to anybody."""
        ...

    def consider(self, request: Request) -> Attendance | None:
        """Say beforehand what `answer` would; raise RefusedError for what it would refuse."""
        ...

    def answer(self, request: Request) -> Answer:
        """Carry out a request, or raise RefusedError."""
        ...

    def begin(self, request: Request) -> Begun | Answer:
        """All that comes before a record is touched."""
        ...

    def carry_out(self, begun: Begun) -> Carried:
        """Train or evaluate: the only step that reads records."""
        ...

    def finish(self, begun: Begun, carried: Carried) -> Answer:
        """What may leave."""
        ...

    def head(self, witnessed: Countersigned | None) -> tuple[Head, Sequence[Entry]] | None:
        """The head of its ledger and what a witness does not hold yet; None where it has no ledger."""
        ...

    def witness(self, countersigned: Countersigned) -> None:
        """Keep a countersignature."""
        ...

    def close(self) -> None:
        """Answer nothing more."""
        ...
