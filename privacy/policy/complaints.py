"""Complaints: what is wrong with a policy, in words that say what to write instead.

Cedar says one thing of each action that a rule covers, and in no fixed order. Here each rule has one line for each
thing that is wrong with it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .vocabulary import actions, covered, meant, scope_text, things

_IN_CONTEXT = re.compile(r'attribute `(\w+)` in context for Action::"(\w+)" not found')
_ON_THING = re.compile(r"attribute `(\w+)` on entity type `(\w+)` not found")
_TYPE = re.compile(r"unrecognized entity type `(\w+)`")
_ACTION = re.compile(r'unrecognized action `Action::"(.*)"`')
_NO_ACTION = "unable to find an applicable action"
_PREFIX = re.compile(r"^for policy [\w.-]+, ")
_MANY = 3  # actions that are named one by one


def complaints(told: Iterable[tuple[str, Mapping[str, Any], str]]) -> Sequence[str]:
    """One line for each thing that is wrong. `told`: whose it is (as `rule a`), its form, Cedar's text."""
    rules: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for whose, form, text in told:
        rules.setdefault(whose, (form, []))[1].append(_PREFIX.sub("", text))
    return [f"{whose}: {said}" for whose, (form, texts) in rules.items() for said in _of_rule(form, sorted(set(texts)))]


def _of_rule(form: Mapping[str, Any], texts: Sequence[str]) -> Iterator[str]:
    missing: dict[str, set[str]] = {}
    is_unknown = any(_TYPE.search(text) or _ACTION.search(text) for text in texts)
    for text in texts:
        if found := _IN_CONTEXT.search(text):
            missing.setdefault(found[1], set()).add(found[2])
        elif _NO_ACTION not in text:
            yield _in_words(text)
        elif not is_unknown:
            yield "no such action is asked by such a principal of such a resource: see the schema's `appliesTo`"
    if missing:
        yield _not_in_context(missing, covered(form))


def _in_words(text: str) -> str:
    if found := _ON_THING.search(text):
        return f"{found[2]} has no attribute {found[1]}; {meant(found[1], things().get(found[2], ()))}"
    if found := _TYPE.search(text):
        return f"there is no type {found[1]}; {meant(found[1], things())}"
    if found := _ACTION.search(text):
        groups = {group for asked in actions().values() for group in asked.groups}
        return f"there is no action {found[1]}; {meant(found[1], {*actions(), *groups})}"
    return text


def _not_in_context(missing: Mapping[str, set[str]], covering: frozenset[str]) -> str:
    """What a rule reads in the context of actions that have it not, all in one sentence."""
    for name, where in missing.items():
        if where >= covering:
            known = frozenset[str]().union(*(actions()[action].context for action in covering if action in actions()))
            return f"context.{name} is not there for {_named(covering)}; {meant(name, known)}"
    words = ", ".join(f"context.{name}" for name in sorted(missing))
    lacking = frozenset[str]().union(*missing.values())
    if not (left := covering - lacking):
        return f"no action has {words} together"
    return f"{words} {'are' if len(missing) > 1 else 'is'} not there for {_named(lacking)}: write {scope_text(left)}"


def _named(some: frozenset[str]) -> str:
    if len(some) > _MANY:
        return f"{len(some)} of the actions that it covers"
    return " and ".join(sorted(some))
