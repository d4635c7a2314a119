"""Peers: the other institutions' nodes. With whom this node trains in a round, as far as it can check it.

What a count means, and what it does not, stands in privacy/attendance.py. The rules:
1. The node signs that it takes part where its policy admits the submission, and checks the signatures of the others
   that the server brings. A key counts once and a name counts once, and so does this node, whoever lists it.
2. Where the institution pinned peers (node.toml, `[peers]`), only these count, each with its own key under its own
   name. Without pins the coordinator names the parties: it holds the authority that certifies them.
3. A key that was revoked does not count, from the moment on at which the node was told.
4. A cohort that is malformed is refused. A signature that does not hold lowers the count, and the policy decides.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ..privacy.attendance import COUNTED_IN_WORDS, MOST_PARTIES, Attendance, attend, attending, decoded
from ..privacy.budget.decisions import Cohort
from ..privacy.channel.member import Member
from ..privacy.errors import ChannelError
from ..privacy.submission import Submission
from .operators import Pins

MOST_KEPT = 8  # submissions whose peers are remembered, each by some 300 bytes; of others they are checked again
_Digest = bytes


@dataclass(frozen=True, slots=True)
class _Peer:
    name: str
    key_fingerprint: str


class Peers:
    """The peers of one member. `pins`: key fingerprint by name, read at each round. From several threads."""

    def __init__(self, member: Member, pins: Pins, is_revoked: Callable[[str], bool]) -> None:
        self._member = member
        self._pins = pins
        self._is_revoked = is_revoked
        self._kept: dict[str, dict[_Digest, _Peer]] = {}
        self._lock = threading.Lock()

    @property
    def trust(self) -> str:
        """Who decides which parties count, in words for the institution."""
        pins = self._pins()
        return ": ".join([COUNTED_IN_WORDS[bool(pins)], *([", ".join(sorted(pins))] if pins else [])])

    def attend(self, submission: Submission) -> Attendance:
        """Sign that this node takes part."""
        return attend(submission, self._member.key, self._member.chain)

    def cohort(self, submission: Submission, told: bytes, now: datetime) -> Cohort:
        """Who takes part, of those that the server lists (`told`, empty where it lists nobody).

        Raises ChannelError for bytes that are no list; what a listed signature is worth is seen in the count alone.
        """
        pins = self._pins()
        attendances = decoded(told) if told else ()
        names, keys = {self._member.identity.name}, {self._member.key.fingerprint}
        for attendance in attendances:
            peer = self._checked(attendance, submission, now)
            if peer is None or peer.name in names or peer.key_fingerprint in keys:
                continue
            if not self._is_revoked(peer.key_fingerprint) and (not pins or pins.get(peer.name) == peer.key_fingerprint):
                names.add(peer.name)
                keys.add(peer.key_fingerprint)
        return Cohort(told=max(1, len(attendances)), parties=len(names), are_pinned=bool(pins))

    def _checked(self, attendance: Attendance, submission: Submission, now: datetime) -> _Peer | None:
        """Who signed; None where nobody did. What held once holds for good, but for a revocation: see the caller."""
        digest = hashlib.sha256(attendance.signature + attendance.certificate + attendance.issuer).digest()
        kept = self._kept_of(submission)
        if digest in kept:
            return kept[digest]
        try:
            node = attending(attendance, submission, self._member.root, now)
        except ChannelError:
            return None
        if len(kept) >= MOST_PARTIES:  # others in every round: whoever certifies is not let fill the memory
            kept.clear()
        kept[digest] = _Peer(node.identity.name, node.key_fingerprint)
        return kept[digest]

    def _kept_of(self, submission: Submission) -> dict[_Digest, _Peer]:
        """What is remembered of a submission's peers; of the one that was asked for longest ago it is forgotten."""
        with self._lock:
            kept = self._kept.pop(submission.hash, {})
            self._kept[submission.hash] = kept
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return kept
