"""Conditions: what a rule asks for, as alternatives of single facts, so far as it can be read without evaluating it.

An alternative holds where all of its facts hold; a rule's conditions hold where one of its alternatives does. What
cannot be read (arithmetic, a comparison of two terms, `like`) stays a fact of which only Cedar knows whether it holds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .rules import LARGEST

MOST_ALTERNATIVES = 256  # of one rule; beyond, nothing is said of it
Form = Mapping[str, Any]  # an expression, as Cedar's own JSON has it
Term = tuple[str, ...]  # such as ("context", "plan", "epsilon")
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_NOT = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_SMALL = {"hour": (0, 23), "minute": (0, 59), "minNodes": (1, LARGEST), "parties": (1, LARGEST)}
WORDS: Mapping[str, frozenset[str]] = {
    "weekday": frozenset(("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")),
    "unit": frozenset(("record", "group", "node", "none")),
    "mechanism": frozenset(("local", "distributed", "central", "none")),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """An expression, and whether it has to hold or must not."""

    form: Form
    holds: bool = True

    @property
    def key(self) -> str:
        """The same for the same expression."""
        return json.dumps(self.form, sort_keys=True)


Alternative = tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """What a term may be: a number from `low` to `high`, a word of `words` (None: any), a set with some words."""

    low: int = -LARGEST
    high: int = LARGEST
    words: frozenset[str | bool] | None = None
    but: frozenset[str | int | bool] = frozenset()
    with_all: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be so."""
        return self.low > self.high or self.words == frozenset() or bool(self.with_all & self.without)

    def and_also(self, other: "Span") -> "Span":
        """Both at once."""
        but = self.but | other.but
        words = self.words if other.words is None else other.words if self.words is None else self.words & other.words
        low, high = max(self.low, other.low), min(self.high, other.high)
        while low in but and low <= high:
            low += 1
        while high in but and low <= high:
            high -= 1
        return Span(
            low,
            high,
            None if words is None else words - but,
            but,
            self.with_all | other.with_all,
            self.without | other.without,
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """A fact that could be read: what it asks of which term."""

    term: Term
    span: Span


def alternatives(conditions: Sequence[Form], wanted: bool = True) -> Sequence[Alternative] | None:
    """The ways in which a rule's conditions all hold; `wanted` False: in which one does not. None: too many to say."""
    if wanted:
        found = _all([_of(one["body"], one["kind"] == "when") for one in conditions])
    else:
        found = [way for one in conditions for way in _of(one["body"], one["kind"] != "when")]
    return None if len(found) > MOST_ALTERNATIVES else found


def is_possible(alternative: Alternative) -> bool:
    """False where its facts contradict one another, or what a term can be at all; True where that is not seen."""
    seen: dict[str, bool] = {}
    for fact in alternative:
        if seen.setdefault(fact.key, fact.holds) != fact.holds:
            return False
    return not any(span.is_empty for span in spans(alternative).values())


def spans(alternative: Alternative) -> dict[Term, Span]:
    """What each term may be, as far as the facts could be read."""
    found: dict[Term, Span] = {}
    for fact in alternative:
        reading = read(fact)
        if reading is not None:
            found[reading.term] = found.get(reading.term, _natural(reading.term)).and_also(reading.span)
    return found


def read(fact: Fact) -> Reading | None:
    """What a fact asks of one term; None where it cannot be told."""
    term = term_of(fact.form)
    if term is not None:
        return Reading(term, Span(words=frozenset((fact.holds,))))
    (kind, parts), *_ = fact.form.items()
    if kind in _TURNED:
        return _comparison(kind if fact.holds else _NOT[kind], parts["left"], parts["right"])
    if kind == "contains":
        return _membership(parts["left"], parts["right"], fact.holds)
    return None


def term_of(form: Form) -> Term | None:
    """The term that an expression is; None where it is none."""
    if "Var" in form:
        return (form["Var"],)
    if "." in form:
        left = term_of(form["."]["left"])
        return (*left, form["."]["attr"]) if left else None
    return None


def terms_in(form: Any) -> Iterator[Term]:
    """Every term of an expression that has a value of its own, in the order in which it is read."""
    if isinstance(form, Mapping):
        term = term_of(form)
        if term is not None:
            yield term
            return
        for inner in form.values():
            yield from terms_in(inner)
    elif isinstance(form, list):
        for inner in form:
            yield from terms_in(inner)


def entities_in(form: Any) -> Iterator[tuple[str, str]]:
    """Every entity that an expression or a scope names: type and id."""
    if isinstance(form, Mapping):
        if set(form) == {"type", "id"}:
            yield form["type"], form["id"]
        for inner in form.values():
            yield from entities_in(inner)
    elif isinstance(form, list):
        for inner in form:
            yield from entities_in(inner)


def _all(parts: Sequence[list[Alternative]]) -> list[Alternative]:
    """One way of each part, together."""
    found: list[Alternative] = [()]
    for ways in parts:
        found = [(*one, *way) for one, way in product(found[: MOST_ALTERNATIVES + 1], ways[: MOST_ALTERNATIVES + 1])]
        found = found[: MOST_ALTERNATIVES + 1]
    return found


def _of(form: Form, wanted: bool) -> list[Alternative]:
    (kind, parts), *_ = form.items()
    if kind == "Value" and isinstance(parts, bool):
        return [()] if parts == wanted else []
    if kind == "!":
        return _of(parts["arg"], not wanted)
    if kind in ("&&", "||"):
        sides = [_of(parts["left"], wanted), _of(parts["right"], wanted)]
        return _all(sides) if (kind == "&&") == wanted else sides[0] + sides[1]
    if kind == "if-then-else":
        then = _all([_of(parts["if"], True), _of(parts["then"], wanted)])
        return then + _all([_of(parts["if"], False), _of(parts["else"], wanted)])
    return [(Fact(form, wanted),)]


def _comparison(kind: str, left: Form, right: Form) -> Reading | None:
    if "Value" in left:
        left, right, kind = right, left, _TURNED[kind]
    term, value = term_of(left), right.get("Value")
    if term is None or value is None or isinstance(value, list):
        return None
    if isinstance(value, Mapping):
        if "__entity" not in value:
            return None
        value = "::".join((value["__entity"]["type"], value["__entity"]["id"]))
    if isinstance(value, str | bool):
        return Reading(term, Span(words=frozenset((value,))) if kind == "==" else Span(but=frozenset((value,))))
    return Reading(
        term,
        {
            "<": Span(high=value - 1),
            "<=": Span(high=value),
            ">": Span(low=value + 1),
            ">=": Span(low=value),
            "==": Span(value, value),
            "!=": Span(but=frozenset((value,))),
        }[kind],
    )


def _membership(left: Form, right: Form, holds: bool) -> Reading | None:
    if "Set" in left:
        words, term = frozenset(one.get("Value") for one in left["Set"]), term_of(right)
        if term is None or not all(isinstance(word, str) for word in words):
            return None
        return Reading(term, Span(words=words) if holds else Span(but=words))
    term, word = term_of(left), right.get("Value")
    if term is None or not isinstance(word, str):
        return None
    return Reading(term, Span(with_all=frozenset((word,))) if holds else Span(without=frozenset((word,))))


def _natural(term: Term) -> Span:
    """What a term can be at all."""
    if term[-1] in WORDS and term[0] == "context":
        return Span(words=frozenset(WORDS[term[-1]]))
    if term[-1] in _SMALL:
        return Span(*_SMALL[term[-1]])
    return Span(low=0) if term[0] == "context" else Span()
