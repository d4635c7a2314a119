"""Facts: on what a decision was made, as its entry tells it, and the question that they give.

An entry may say anything. What is read here has the shape of facts: three parts, each a flat record of texts, whole
numbers, truths and lists of texts, or of such records; whether the schema knows its words, Cedar says.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..policy.rules import LARGEST, Entity, Question
from .bodies import Decided

Facts = Mapping[str, Mapping[str, Any]]
PARTS = ("principal", "resource", "context")
MOST_KEYS = 200  # of one record; a plan has some forty
_TASK = "Task::"


class MalformedFactsError(ValueError):
    """Facts that are none; the text says why."""


def read_facts(text: str) -> Facts:
    """The facts in an entry; raise MalformedFactsError."""
    try:
        told = json.loads(text, parse_float=_refused, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise MalformedFactsError("facts are not JSON of whole numbers") from None
    if not isinstance(told, dict) or set(told) != set(PARTS):
        raise MalformedFactsError(f"facts have other parts than {', '.join(PARTS)}")
    if not all(_is_record(part, _is_value) for part in told.values()):
        raise MalformedFactsError("facts are no records of texts, whole numbers and truths")
    if json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False) != text:
        raise MalformedFactsError("facts have a second spelling")  # and so could have a second meaning
    return told


def merged(facts: Facts, since: Facts | None) -> Facts:
    """The facts of a later decision: what stood at the run's admission, and what has changed."""
    if since is None:
        return facts
    return {part: {**since[part], **facts[part]} for part in PARTS}


def question_of(body: Decided, facts: Facts) -> Question:
    """What the policy was asked; raise MalformedFactsError."""
    attributes = dict(facts["resource"])
    within = attributes.pop("within", ())
    if not isinstance(within, list) or not all(name.startswith(_TASK) for name in within):
        raise MalformedFactsError("what the resource is within is no list of tasks")
    groups = tuple(("Task", name.removeprefix(_TASK)) for name in within)
    kind, _, name = body.resource.partition("::")
    return Question(
        Entity(("Operator", body.operator), facts["principal"]),
        body.action,
        Entity((kind, name), attributes, groups),
        facts["context"],
        tuple(Entity(group) for group in groups),
    )


def record_in(facts: Facts, name: str) -> Mapping[str, Any]:
    """A record of the context; empty where there is none."""
    found = facts["context"].get(name)
    return found if isinstance(found, dict) else {}


def _refused(text: str) -> None:
    raise ValueError(f"{text[:20]} is no whole number")


def _is_record(told: object, is_value: Callable[[object], bool]) -> bool:
    return isinstance(told, dict) and len(told) <= MOST_KEYS and all(is_value(value) for value in told.values())


def _is_value(told: object) -> bool:
    return _is_leaf(told) or _is_record(told, _is_leaf)


def _is_leaf(told: object) -> bool:
    if isinstance(told, int):
        return -LARGEST <= told <= LARGEST
    return isinstance(told, str) or (isinstance(told, list) and all(isinstance(text, str) for text in told))
