"""Replies from nodes: outside data, checked before anything is done with it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from ..privacy.attendance import Attendance
from ..privacy.channel import words
from ..privacy.channel.arrays import to_parameters
from ..privacy.channel.identities import Certificate
from ..privacy.errors import REFUSAL_CODES, ChannelError, RefusedError
from ..privacy.parameters import Array, Parameters, problem_of
from ..privacy.plan import NAME_PATTERN

# What a node may declare: it becomes a weight, and sums of weights must stay exact.
LARGEST_DECLARED_SIZE = 2**40
# What the server's own channel puts in the place of an answer.
_SERVERS_OWN = {words.LOST: words.DISCONNECTED, words.CONTRADICTS: words.LEDGER_CONTRADICTS}


@dataclass(frozen=True, slots=True)
class Member:
    """A node on the roster."""

    node_id: int
    name: str
    declared_size: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a reply cannot be used: a Refusal of the node, or a word of the server's own.

    `disclosed`: what the institution lets be told of it, for people; nothing is decided by it.
    """

    code: str
    disclosed: str = ""

    @property
    def text(self) -> str:
        """Both, as they are shown."""
        return f"{self.code}{words.DISCLOSED}{self.disclosed}" if self.disclosed else self.code


def code_in(text: str) -> str:
    """The code of a failure, of which `text` is what is shown.

    >>> code_in("policy-denied: epsilon-at-most-2")
    'policy-denied'
    """
    return text.partition(words.DISCLOSED)[0]


def failure_of(reply: Message) -> Failure | None:
    """The node's refusal, a failed app, or nothing.

    The reason is believed only as a code of the closed list; what is disclosed after it, only as a line to be shown.
    """
    if not reply.has_error():
        return None
    code, _, disclosed = (reply.error.reason or "").partition(words.DISCLOSED)
    if reply.error.code == words.REFUSED and code in REFUSAL_CODES:
        return Failure(code, disclosed if _can_be_shown(disclosed) else "")
    return Failure(_SERVERS_OWN.get(reply.error.code, "app-failed"))


def _can_be_shown(disclosed: str) -> bool:
    return len(disclosed) <= words.LONGEST_DISCLOSED and disclosed.isprintable()


def member_of(reply: Message) -> Member | Failure:
    """The node that describes itself, or why it does not."""
    failure = failure_of(reply)
    if failure:
        return failure
    config = reply.content.get(words.CONFIG)
    if not isinstance(config, ConfigRecord):
        return Failure("malformed-description")
    name, size = config.get(words.NAME), config.get(words.DECLARED_SIZE)
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        return Failure("malformed-description")
    if type(size) is not int or not 1 <= size <= LARGEST_DECLARED_SIZE:
        return Failure("malformed-description")
    return Member(reply.metadata.src_node_id, name, size)


def attendance_of(reply: Message) -> Attendance | Failure | None:
    """The signature, in its own name, with which a node takes part; None where it brings none, as in a simulation."""
    member = member_of(reply)
    config = None if isinstance(member, Failure) else reply.content.get(words.CONFIG)
    if isinstance(member, Failure) or not isinstance(config, ConfigRecord) or words.SIGNATURE not in config:
        return None
    signature, chain = config.get(words.SIGNATURE), config.get(words.CERTIFICATES)
    if not isinstance(signature, bytes) or not isinstance(chain, bytes):
        return Failure("malformed-attendance")
    try:
        attendance = Attendance.of_pem(signature, chain)
        is_own = Certificate.of_der(attendance.certificate).identity.name == member.name
    except ChannelError:
        return Failure("malformed-attendance")
    return attendance if is_own else Failure("malformed-attendance")


def size_of(reply: Message) -> int:
    """Bytes of the arrays in a reply."""
    record = reply.content.get(words.ARRAYS) if reply.has_content() else None
    return sum(len(array.data) for array in record.values()) if isinstance(record, ArrayRecord) else 0


def checked_update(reply: Message, like: Parameters | None) -> dict[str, Array] | Failure:
    """The parameters in a reply, views of its bytes: like the model that was sent, float32 and finite."""
    failure = failure_of(reply)
    if failure:
        return failure
    record = reply.content.get(words.ARRAYS)
    if not isinstance(record, ArrayRecord):
        return Failure("malformed-update")
    try:
        update = to_parameters(record)
    except RefusedError:
        return Failure("malformed-update")
    return Failure("malformed-update") if problem_of(update, like) else update


def checked_metrics(reply: Message, names: Sequence[str]) -> dict[str, float] | Failure:
    """The named sums in a reply, each a finite number."""
    failure = failure_of(reply)
    if failure:
        return failure
    record = reply.content.get(words.METRICS)
    values = {name: record.get(name) for name in names} if isinstance(record, MetricRecord) else {}
    sums = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    if len(sums) != len(names) or not all(math.isfinite(value) for value in sums.values()):
        return Failure("malformed-metrics")
    return sums
