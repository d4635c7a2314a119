"""Changes: the least that would have to be other than it is for a rule to say something else. Cedar judges each.

A way is read from the rule's conditions (conditions.py); where they cannot be read, a number is looked for by halving,
one term at a time. Nothing is told that Cedar, asked again with the change in place, does not bear out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cedarpy

from .conditions import Alternative, Fact, Form, Span, Term, alternatives, is_possible, read, spans, terms_in
from .rules import LARGEST, Entity, Question, Rule, Rules
from .units import name_of, value_of

_BRACKETED = re.compile(r"(?<!\w)\(([\w.]+)\)")  # Cedar writes (context.plan).epsilon
_EVERYTHING = {"op": "All"}
_FARTHEST = 2**50  # where a search for a larger number ends
_DISTANCES = (1, 2, 3, 5, 17, 101, 1009)  # at which a bound is tried; no two are multiples of one number
_UNWELCOME = 10  # a plan without a claim is the last thing to advise
_IS_NOT_PLAN = 1.5  # what the operator cannot change by itself comes second


@dataclass(frozen=True, slots=True)
class Change:
    """One term: what it is, what it would have to be (in words), and a value that would do.

    `means`: what that comes to for the plan that is asked about; empty where it says no more.
    """

    term: Term
    now: str
    wanted: str
    value: Any
    means: str = ""

    @property
    def text(self) -> str:
        """Such as `epsilon 3 -> at most 2`."""
        return f"{name_of(self.term)} {self.now} -> {self.wanted}" + (f": {self.means}" if self.means else "")


def changes(rule: Rule, question: Question, wanted: bool) -> tuple[Change, ...] | None:
    """The fewest changes that make a rule's conditions hold (or not, as `wanted`); None where none were found.

    None at all are needed, and none would do, where a rule forbids whatever is asked.
    """
    conditions = rule.form["conditions"]
    ways, found = alternatives(conditions, wanted), []
    if not wanted and ways is not None and not ways:
        return ()
    for way in ways or ():
        if not is_possible(way):
            continue
        changed = _changes_of(way, question)
        if changed is not None and matches(conditions, changed_by(question, changed)) == wanted:
            found.append(changed)
    return min(found, key=_weight, default=None)


def unmet(rule: Rule, question: Question, wanted: bool) -> tuple[str, ...]:
    """What does not hold, in Cedar's words, of the way in which least is missing: where no change was found."""
    ways = alternatives(rule.form["conditions"], wanted) or ()
    found = [[fact for fact in way if not _holds(fact, question)] for way in ways]
    least = min(found, key=lambda facts: (len(facts), sum(not fact.holds for fact in facts)), default=[])
    return tuple(f"{_cedar(fact.form)} {'has to hold' if fact.holds else 'must not hold'}" for fact in least)


def changed_by(question: Question, some: Sequence[Change]) -> Question:
    """The question, with the changes in place."""
    for change in some:
        question = _put(question, change.term, change.value)
    return question


def matches(conditions: Sequence[Form], question: Question) -> bool:
    """Whether conditions hold, whomever and whatever the rule is for."""
    return _is_permitted({"conditions": list(conditions)}, question)


def covers(part: str, scope: Form, question: Question) -> bool:
    """Whether one part of a rule's scope (principal, action or resource) is met."""
    return _is_permitted({part: scope}, question)


def value_at(term: Term, question: Question) -> Any:
    """What the rule sees; None where there is nothing."""
    value: Any = {
        "context": question.context,
        "principal": question.principal.attributes,
        "resource": question.resource.attributes,
    }.get(term[0], {})
    if len(term) == 1:
        return {"principal": question.principal.uid, "resource": question.resource.uid}.get(term[0])
    for name in term[1:]:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_permitted(form: Form, question: Question) -> bool:
    rule = Rule("what-if", "permit", "", _whole(form))
    return Rules.imagined([rule]).decide(question).is_permitted


def _whole(form: Form) -> dict[str, Any]:
    """A permit of everything, but for what the form says."""
    scope = {"principal": _EVERYTHING, "action": _EVERYTHING, "resource": _EVERYTHING}
    return {"effect": "permit", "conditions": [], "annotations": {}, **scope, **form}


def _changes_of(way: Alternative, question: Question) -> tuple[Change, ...] | None:
    """What would have to change for every fact to hold; None where no number was found that makes one hold."""
    found: dict[Term, Change] = {}
    wanted = spans(way)
    for fact in way:
        if _holds(fact, question):
            continue
        reading = read(fact)
        change = _to_span(reading.term, wanted[reading.term], question) if reading else _halved(fact, question)
        if change is None:
            return None
        found[change.term] = change
    return tuple(found.values())


def _cedar(form: Form) -> str:
    """An expression as it is written."""
    text = cedarpy.policies_from_json_str(
        json.dumps(
            {
                "staticPolicies": {"policy0": _whole({"conditions": [{"kind": "when", "body": form}]})},
                "templates": {},
                "templateLinks": [],
            }
        )
    )
    said = " ".join(text.partition("when {")[2].rpartition("}")[0].split())
    while said != (bare := _BRACKETED.sub(r"\1", said)):
        said = bare
    return said


def _holds(fact: Fact, question: Question) -> bool:
    return matches([{"kind": "when" if fact.holds else "unless", "body": fact.form}], question)


def _to_span(term: Term, span: Span, question: Question) -> Change | None:
    now = value_at(term, question)
    if not isinstance(now, str | int | list) or len(term) == 1:
        return None  # who asks, and of what, is another question
    if isinstance(now, list) and not all(isinstance(one, str) for one in now):
        return None
    if isinstance(now, list):
        value: Any = sorted((set(now) | span.with_all) - span.without)
    elif isinstance(now, bool):
        value = span.words is None or True in span.words
    elif isinstance(now, int):
        value = min(max(now, span.low), span.high)
    elif span.words is not None:
        value = min(span.words, key=str)
    else:
        value = f"{now}-other"
    return Change(term, value_of(term, now), _wanted(term, span, now, value), value)


def _wanted(term: Term, span: Span, now: Any, value: Any) -> str:
    if isinstance(now, list):
        more, less = span.with_all - set(now), span.without & set(now)
        parts = [f"with {', '.join(sorted(more))}"] * bool(more) + [f"without {', '.join(sorted(less))}"] * bool(less)
        return " and ".join(parts)
    if isinstance(now, bool):
        return value_of(term, value)
    if isinstance(now, str):
        if span.words is None:
            return f"other than {', '.join(sorted(map(str, span.but)))}"
        return " or ".join(sorted(value_of(term, word) for word in span.words))
    if value == now:
        return f"other than {value_of(term, now)}"
    low, high = value_of(term, span.low), value_of(term, span.high)
    if span.low == span.high:
        return low
    if span.low > 0 and span.high < LARGEST:
        return f"from {low} to {high}"
    return f"at least {low}" if now < span.low else f"at most {high}"


def _halved(fact: Fact, question: Question) -> Change | None:
    """The nearest number of one term that makes a fact hold which could not be read."""
    for term in dict.fromkeys(terms_in(fact.form)):
        now = value_at(term, question)
        if isinstance(now, bool) and _holds(fact, _put(question, term, not now)):
            return Change(term, value_of(term, now), value_of(term, not now), not now)
        if isinstance(now, int) and not isinstance(now, bool):
            for far in _far(now):
                if _holds(fact, _put(question, term, far)):
                    nearest = _nearest(fact, question, term, far)
                    wanted = f"{_word(fact, question, term, nearest)} {value_of(term, nearest)}"
                    return Change(term, value_of(term, now), wanted, nearest)
    return None


def _word(fact: Fact, question: Question, term: Term, nearest: int) -> str:
    """A bound only where it holds beyond, and nowhere on the other side of what is: by some numbers of each."""
    now = value_at(term, question)
    step = 1 if nearest > now else -1

    def holds(begin: int, towards: int) -> Iterator[bool]:
        numbers = (begin + towards * distance for distance in _DISTANCES)
        return (_holds(fact, _put(question, term, number)) for number in numbers if number >= 0)

    if not all(holds(nearest, step)) or any(holds(now, -step)):
        return "such as"
    return "at least" if step > 0 else "at most"


def _far(now: int) -> Iterator[int]:
    """Numbers ever farther away, below and then above."""
    below = now
    while below > 0:
        below //= 2
        yield below
    above = max(1, now)
    while above < _FARTHEST:
        above *= 2
        yield above


def _nearest(fact: Fact, question: Question, term: Term, far: int) -> int:
    near = value_at(term, question)
    while abs(far - near) > 1:
        middle = (far + near) // 2
        if _holds(fact, _put(question, term, middle)):
            far = middle
        else:
            near = middle
    return far


def _put(question: Question, term: Term, value: Any) -> Question:
    if term[0] == "principal":
        return replace(question, principal=_entity(question.principal, term[1:], value))
    if term[0] == "resource":
        return replace(question, resource=_entity(question.resource, term[1:], value))
    return replace(question, context=_with(question.context, term[1:], value))


def _entity(entity: Entity, path: Term, value: Any) -> Entity:
    return replace(entity, attributes=_with(entity.attributes, path, value))


def _with(told: Mapping[str, Any], path: Term, value: Any) -> dict[str, Any]:
    inner = value if len(path) == 1 else _with(told[path[0]], path[1:], value)
    return {**told, path[0]: inner}


def _weight(some: Sequence[Change]) -> float:
    return sum(
        _UNWELCOME
        if one.term[-1] == "isPrivate" and not one.value
        else (1 if one.term[:2] == ("context", "plan") else _IS_NOT_PLAN)
        for one in some
    )
