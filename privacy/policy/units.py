"""Units: a term of the schema and its value as a person says them: epsilon 3, not context.plan.epsilon 3000000."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from .rules import LARGEST
from .terms import MILLIONTH, TRILLIONTH

_OF_PLAN = ("epsilon", "noiseMultiplier", "clipNorm", "samplingRate", "evaluationNoise", "fraction", "learningRate")
_OF_ACCOUNT = ("epsilonLimit", "epsilonAfter", "epsilonOfOperator", "epsilonOfProject")
_MILLIONTHS = frozenset((*_OF_PLAN, "momentum", "weightDecay", *_OF_ACCOUNT))
_TRILLIONTHS = frozenset(("delta", "deltaLimit", "deltaAfter"))
_KEY = 16  # digits of a fingerprint that are shown
_DAYS = frozenset(("expires", "date"))
_NAMES = {
    "context.account.name": "account",
    "context.account.unit": "the account's unit",
    "context.account.epsilonLimit": "the account's epsilon",
    "context.account.epsilonAfter": "the account's epsilon with this run charged",
    "context.account.deltaLimit": "the account's delta",
    "context.account.deltaAfter": "the account's delta with this run charged",
    "context.account.epsilonOfOperator": "epsilon of the operator's runs on the account",
    "context.account.epsilonOfProject": "epsilon of the project's runs on the account",
    "context.plan.isPrivate": "a claim",
    "context.plan.expires": "the submission's last day",
    "context.cohort.told": "parties that the server names",
    "context.cohort.parties": "parties that count",
    "context.cohort.arePinned": "parties' keys pinned here",
    "context.transport.tls": "TLS",
    "context.transport.certificateAgeHours": "hours of the operator's certificate",
    "principal.key": "the operator's key",
    "principal.isPinned": "the operator's key pinned here",
    "resource.declaredSize": "declared size",
    "resource.account": "account",
}


def name_of(term: Sequence[str]) -> str:
    """What a term is called.

    >>> name_of(("context", "plan", "minNodes")), name_of(("context", "account", "epsilonLimit"))
    ('min-nodes', "the account's epsilon")
    """
    known = _NAMES.get(".".join(term))
    return known or re.sub(r"(?<=[a-z])[A-Z]", lambda found: f"-{found[0].lower()}", term[-1])


def value_of(term: Sequence[str], value: Any) -> str:
    """A value with its unit.

    >>> value_of(("context", "plan", "epsilon"), 3000000), value_of(("context", "plan", "delta"), 10000000)
    ('3', '1e-05')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _number(term[-1], value)
    if isinstance(value, Mapping):
        return "::".join(map(str, value.get("__entity", value).values()))
    if isinstance(value, list | tuple | frozenset):
        return ", ".join(sorted(map(str, value))) or "none"
    if term[-1] == "key":
        return f"{value[:_KEY]}…" if len(value) > _KEY else value or "none"
    return str(value) or "none"


def _number(name: str, value: int) -> str:
    if value == LARGEST:
        return "without bound"
    if name in _MILLIONTHS:
        return f"{(value * MILLIONTH).normalize():f}"
    if name in _TRILLIONTHS:
        exact = Decimal(value) * TRILLIONTH
        short = f"{float(exact):g}"
        return short if Decimal(short) == exact else str(exact.normalize()).lower()
    if name in _DAYS:
        return f"{value // 10000:04}-{value // 100 % 100:02}-{value % 100:02}"
    return str(value)
