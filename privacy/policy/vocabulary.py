"""What a policy can speak of, as the schema that ships has it: actions, their groups, and the attributes of each thing.

Cedar checks policies by the schema itself. This is for those who explain: which actions a rule covers, and which word
was meant.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_COMMENT = re.compile(r"//[^\n]*")
_THING = re.compile(r"\b(?:entity|type)\s+(\w+)([^{;]*)(?:\{(.*?)\})?\s*;", re.DOTALL)
_ACTION = re.compile(r"\baction\s+([\w\s,]+?)(?:\s+in\s+\[([\w\s,]+)\])?\s*(?:appliesTo\s*\{(.*?)\})?;", re.DOTALL)
_CONTEXT = re.compile(r"context:\s*\{(.*?)\}", re.DOTALL)
_ATTRIBUTE = re.compile(r"(\w+)\??\s*:")


@dataclass(frozen=True, slots=True)
class Asked:
    """An action that is asked. `groups`: those that it is in; `context`: the names of what its context has."""

    groups: frozenset[str]
    context: frozenset[str]


@cache
def actions() -> Mapping[str, Asked]:
    """Every action that can be asked, by name; groups of them are none."""
    found: dict[str, Asked] = {}
    for names, groups, body in _ACTION.findall(_schema()):
        if body:
            context = _CONTEXT.search(body)
            asked = Asked(frozenset(_words(groups)), frozenset(_ATTRIBUTE.findall(context[1]) if context else ()))
            found |= dict.fromkeys(_words(names), asked)
    return found


@cache
def things() -> Mapping[str, frozenset[str]]:
    """The attributes of every type of thing, by its name."""
    return {name: frozenset(_ATTRIBUTE.findall(body)) for name, _, body in _THING.findall(_schema())}


def covered(form: Mapping[str, Any]) -> frozenset[str]:
    """The actions that a rule's scope covers.

    >>> sorted(covered({"action": {"op": "in", "entity": {"type": "Action", "id": "steer"}}}))
    ['resume', 'stop', 'submit', 'submitApp']
    """
    scope = form["action"]
    if scope["op"] == "All":
        return frozenset(actions())
    named = {one["id"] for one in scope.get("entities", [scope.get("entity")])}
    return frozenset(name for name, asked in actions().items() if name in named or asked.groups & named)


def scope_text(covering: Collection[str]) -> str:
    """How a rule's scope says that it covers these actions, or a group of them."""
    for group in sorted({group for asked in actions().values() for group in asked.groups}):
        if {name for name, asked in actions().items() if group in asked.groups} <= set(covering):
            return f'action in Action::"{group}"'
    named = ", ".join(f'Action::"{name}"' for name in actions() if name in covering)
    return f"action in [{named}]" if len(covering) > 1 else f"action == {named}"


def meant(word: str, known: Collection[str]) -> str:
    """The end of a message on an unknown word: what was meant, or what is known."""
    nearest = difflib.get_close_matches(word.lower(), {one.lower(): one for one in known}, n=1)
    if nearest:
        return f"did you mean {next(one for one in sorted(known) if one.lower() == nearest[0])}?"
    return f"known: {', '.join(sorted(known))}" if known else "there is none"


@cache
def _schema() -> str:
    text = files(__package__).joinpath("schema.cedarschema").read_text(encoding="utf-8")
    return _COMMENT.sub("", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
