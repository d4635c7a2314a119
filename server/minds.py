"""Minds: nodes whose institution has not spoken yet, or may take back what it said; and waiting for them.

A run that lacks nodes waits for those whose approval is pending and for those that are paused, as long as they are
members, until its submission has expired or the operator stops it. Nobody is asked meanwhile: a node tells by its
presence that a decision may be other.
Between two roll calls there is a rest, or one node that changes its mind all the time would keep the server busy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.envelope import Envelope, time_of
from ..privacy.errors import FederationError
from .run_grid import RunGrid

_LONGEST_SECONDS = 60.0  # then a node that called itself busy, whose presence says nothing of it, is asked again
REST_SECONDS = 2.0  # a person who has spoken does not mind them


class Minds(Protocol):
    """What a federation asks of a grid whose nodes may change their minds."""

    def revisions(self) -> Mapping[int, str]:
        """By node: another word whenever what the node refused may be permitted now."""
        ...

    def has_left(self, node_id: int) -> bool:
        """Whether the node is no member any more."""
        ...

    def wait(self, seen: Mapping[int, str]) -> None:
        """Return when the revisions are other than these, though not at once, or some time later.

        Raises FederationError when it is over.
        """
        ...


@dataclass(frozen=True, slots=True)
class GridMinds:
    """The nodes of a run's grid, until its submission has expired."""

    grid: RunGrid
    body: Envelope
    clock: Clock = system_clock

    def revisions(self) -> Mapping[int, str]:
        """See Minds."""
        return self.grid.revisions()

    def has_left(self, node_id: int) -> bool:
        """See Minds."""
        return self.grid.has_left(node_id)

    def wait(self, seen: Mapping[int, str]) -> None:
        """See Minds."""
        left = time_of(self.body.expires) - self.clock()
        if left <= timedelta(0):
            raise FederationError(
                f"the submission was valid until {self.body.expires}, and nodes were waited for",
                "ask their institutions, then submit the plan again",
            )
        self.grid.rest(min(REST_SECONDS, left.total_seconds()))
        self.grid.wait_for_revisions(seen, min(_LONGEST_SECONDS, left.total_seconds()))
