"""Asked again: each decision is made anew by Cedar, with the policy's text and the facts that stand in the ledger.

The engine is the one that decided (`policy/rules.py`): what is checked is that nobody wrote down another decision, not
that Cedar is right. What was asked before, word for word, is not asked again.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import PolicyError
from ..policy.rules import Decision, Question, Rules
from .bodies import Decided
from .facts import Facts, question_of

_Made = TypeVar("_Made")
MOST_KEPT = 100_000  # decisions of one audit, some hundred bytes each
# Parts of a context that change with every request, and that few policies speak of.
_FLEETING = ("time", "round", "attempt")


class CedarFailedError(ValueError):
    """Cedar gave up on a text, other than by saying what is wrong with it."""


class Judge:
    """Policies by their hash, and what they decided."""

    def __init__(self) -> None:
        self._rules: dict[str, Rules | None] = {}
        self._silent: dict[str, tuple[str, ...]] = {}
        self._known: dict[bytes, Decision] = {}

    def take(self, digest: str, text: str) -> str | None:
        """Keep a policy under its hash; give why it is none, where it does not validate."""
        self._rules[digest] = None
        try:
            self._rules[digest] = _survived(lambda: Rules(text))
        except (PolicyError, CedarFailedError) as error:
            return str(error)
        words = frozenset(re.findall(r"\w+", text))
        # With an escape a rule can spell any word.
        self._silent[digest] = () if "\\" in text else tuple(name for name in _FLEETING if name not in words)
        return None

    def decide(self, body: Decided, facts: Facts) -> Decision | None:
        """The decision anew; None where the policy does not validate.

        Raises MalformedFactsError for facts that give no question, CedarFailedError where Cedar gives up.
        """
        rules, question = self._rules.get(body.policy), question_of(body, facts)
        if rules is None:
            return None
        key = self._key(body, question)
        known = self._known.get(key)
        if known is None:
            known = _survived(lambda: rules.decide(question))
            if len(self._known) < MOST_KEPT:
                self._known[key] = known
        return known

    def _key(self, body: Decided, question: Question) -> bytes:
        """The question, in short. What no rule speaks of cannot decide, as long as it has the shape it should have."""
        silent = self._silent[body.policy]
        context = {
            name: ... if name in silent and _is_whole(name, value) else value
            for name, value in sorted(question.context.items())
        }
        told = (body.policy, question.principal, question.action, question.resource, context)
        return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).digest()


def _survived(made: Callable[[], _Made]) -> _Made:
    """What Cedar makes. A panic in it is an exception, but no Exception."""
    try:
        return made()
    except PolicyError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise CedarFailedError(f"Cedar gives up on it: {type(error).__name__}") from None


def _is_whole(name: str, value: Any) -> bool:
    if name != "time":
        return type(value) is int
    kinds = {"date": int, "weekday": str, "hour": int, "minute": int}
    return isinstance(value, Mapping) and {key: type(told) for key, told in value.items()} == kinds
