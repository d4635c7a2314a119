"""Attendances: which nodes of a run have signed that they take part, to be shown to one another.

The server only hands them on: each node checks them itself (client/cohort.py), and believes no count of the server's.
What is handed on is well-formed, so that one node cannot make the others refuse a round.
"""

import logging
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message

from ..privacy.attendance import Attendance, encoded
from ..privacy.channel import words
from ..privacy.channel.identities import Certificate
from ..privacy.errors import ChannelError
from .replies import Member, member_of

log = logging.getLogger("privet.server")


class Attendances:
    """Of one run, by the number of the node that brought it."""

    def __init__(self) -> None:
        self._by_node: dict[int, Attendance] = {}
        self._told: tuple[tuple[int, ...], bytes] = ((), b"")  # of the last round, encoded once for all its nodes

    def note(self, reply: Message) -> None:
        """Keep what a node brought when it described itself, in place of what it brought before."""
        node_id = reply.metadata.src_node_id
        self._by_node.pop(node_id, None)
        self._told = ((), b"")
        member = member_of(reply)
        brought = _brought(reply, member) if isinstance(member, Member) else None
        if brought is not None:
            self._by_node[node_id] = brought

    def config(self, node_ids: Iterable[int]) -> dict[str, bytes]:
        """What comes with a request to these nodes: all of theirs. Nothing where nobody signed, as in a simulation.

        Of more than travel at once (attendance.encoded) those with the lowest numbers are told, and the others not.
        """
        asked = tuple(sorted(node_id for node_id in node_ids if node_id in self._by_node))
        if asked != self._told[0]:
            self._told = (asked, encoded(self._by_node[node_id] for node_id in asked))
        return {words.COHORT: self._told[1]} if asked else {}


def _brought(reply: Message, member: Member) -> Attendance | None:
    """What is well-formed and in the node's own name; of anything else the log says so, and nobody counts it."""
    config = reply.content.get(words.CONFIG)
    assert isinstance(config, ConfigRecord), "a member has described itself"
    signature, chain = config.get(words.SIGNATURE), config.get(words.CERTIFICATES)
    if signature is None and chain is None:
        return None
    try:
        if not isinstance(signature, bytes) or not isinstance(chain, bytes):
            raise ChannelError("its signature or certificates are missing or of another type", "ask the institution")
        attendance = Attendance.of_pem(signature, chain)
        identity = Certificate.of_der(attendance.certificate).identity
        if identity.name != member.name:
            raise ChannelError(f"it brought the certificate of {identity.uri}", "ask the institution")
    except ChannelError as error:
        log.warning("node %s does not count in a cohort: %s", member.name, error.message)
        return None
    return attendance
