"""Attendances: which nodes of a run have signed that they take part, to be shown to one another.

The server only hands them on: each node checks them itself (client/cohort.py), and believes no count of the server's.
What is handed on is well-formed, so that one node cannot make the others refuse a round.
"""

import logging
from collections.abc import Iterable

from ..privacy.attendance import Attendance, encoded
from ..privacy.channel import words
from .replies import Failure

log = logging.getLogger("privet.server")


class Attendances:
    """Of one run, by the number of the node that brought it."""

    def __init__(self) -> None:
        self._by_node: dict[int, Attendance] = {}
        self._told: tuple[tuple[int, ...], bytes] = ((), b"")  # of the last round, encoded once for all its nodes

    def note(self, node_id: int, brought: Attendance | Failure | None) -> None:
        """Keep what a node brought when it described itself, in place of what it brought before."""
        self._by_node.pop(node_id, None)
        self._told = ((), b"")
        if isinstance(brought, Failure):
            log.warning("node %d: %s: it does not count in a cohort", node_id, brought.code)
        elif brought is not None:
            self._by_node[node_id] = brought

    def config(self, node_ids: Iterable[int]) -> dict[str, bytes]:
        """What comes with a request to these nodes: all of theirs. Nothing where nobody signed, as in a simulation.

        Of more than travel at once (attendance.encoded) those with the lowest numbers are told, and the others not.
        """
        asked = tuple(sorted(node_id for node_id in node_ids if node_id in self._by_node))
        if asked != self._told[0]:
            self._told = (asked, encoded(self._by_node[node_id] for node_id in asked))
        return {words.COHORT: self._told[1]} if asked else {}
