"""Rules: a validated set of Cedar policies, and the decision on one question. Default deny.

What Cedar leaves open, and is closed here:
1. A `forbid` whose evaluation errs is skipped by Cedar, so that what it forbids would be allowed. Here any error in an
   evaluation, of whatever rule, is a denial that says so. The schema is given with every question.
2. Every rule has an `@id`, unlike any other's: a denial names it.
3. Cedar ignores annotations. A denial whose deciding rules all carry `@approval("ROLE")` is `pending`: it waits for a
   person. It stays a denial for whoever asks, until the context says that the person has approved. Nobody is asked in
   vain: what would be denied also if every role of the policy had approved is denied now, by what denies it then.
4. The text ends with `END`. A file that was half written may be whole Cedar, and lack what forbids.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Self

import cedarpy

from ..errors import PolicyError
from ..plan import NAME_PATTERN
from .complaints import complaints
from .depth import problem_of_depth
from .source import places

END = "// end of policy"
POLICY_BYTES = 256 * 1024  # some thousand rules; it is written into the ledger
LARGEST = 2**63 - 1  # of Cedar's Long
_REMEDY = "privet policy check names every problem; privet policy edit mends them"

Uid = tuple[str, str]  # type and id, such as ("Operator", "alice")


@dataclass(frozen=True, slots=True)
class Entity:
    """Somebody or something that a question is about. `within`: its groups."""

    uid: Uid
    attributes: Mapping[str, Any] = field(default_factory=dict)
    within: tuple[Uid, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As Cedar reads it."""
        return {
            "uid": _named(self.uid),
            "attrs": dict(self.attributes),
            "parents": [_named(one) for one in self.within],
        }


@dataclass(frozen=True, slots=True)
class Question:
    """May `principal` do `action` to `resource`, as things stand? `others`: entities that these are related to."""

    principal: Entity
    action: str
    resource: Entity
    context: Mapping[str, Any]
    others: tuple[Entity, ...] = ()


class Verdict(StrEnum):
    """What was decided. Whatever is not permitted is denied; `pending` is a denial that a person may lift."""

    PERMITTED = "permitted"
    DENIED = "denied"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision. `rules`: the ids of those that decided; none where nothing permits. `error`: why none could decide.

    `approvals`: whose approval lifts a pending one. `policy`: the hash of the rules.
    """

    verdict: Verdict
    rules: tuple[str, ...]
    policy: str
    approvals: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_permitted(self) -> bool:
        """Whether it may be done now."""
        return self.verdict is Verdict.PERMITTED

    @property
    def why(self) -> str:
        """The decision in a few words."""
        if self.error:
            return f"the policy could not be evaluated: {self.error}"
        if self.verdict is Verdict.PENDING:
            return f"rule {', '.join(self.rules)} asks for the approval of {', '.join(self.approvals)}"
        if self.is_permitted:
            return f"permitted by rule {', '.join(self.rules)}"
        return f"forbidden by rule {', '.join(self.rules)}" if self.rules else "no rule permits it"


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy. `approval`: the role whose approval it waits for; empty where it waits for none."""

    id: str
    effect: str
    approval: str
    form: Mapping[str, Any]  # as Cedar's own JSON has it
    line: int = 0  # of the text, where it begins


class Rules:
    """A validated set of policies. Threads may share it: it never changes."""

    def __init__(self, text: str) -> None:
        """Raises PolicyError, which names every problem that was found."""
        self.text = text
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        self.rules = _parsed(text)
        self._names = {f"policy{place}": rule for place, rule in enumerate(self.rules)}
        self._set = cedarpy.PolicySet.from_str(text)
        found = cedarpy.validate_policies(text, schema())
        if not found.validation_passed:
            raise PolicyError(complaints(self._told(error) for error in found.errors), _REMEDY)

    @classmethod
    def of_bytes(cls, content: bytes) -> Self:
        """The rules in a file's bytes; raise PolicyError."""
        if len(content) > POLICY_BYTES:
            raise PolicyError([f"{len(content)} bytes, allowed are {POLICY_BYTES}"], _REMEDY)
        try:
            return cls(content.decode())
        except UnicodeDecodeError:
            raise PolicyError(["it is not UTF-8 text"], _REMEDY) from None

    @classmethod
    def imagined(cls, rules: Sequence[Rule]) -> Self:
        """Rules that were taken out of others, or changed, to ask what if. Nobody may act on what they decide."""
        asked = cls.__new__(cls)
        forms = {f"policy{place}": dict(rule.form) for place, rule in enumerate(rules)}
        asked.text, asked.hash, asked.rules = "", "", tuple(rules)
        asked._names = dict(zip(forms, rules, strict=True))
        told = {"staticPolicies": forms, "templates": {}, "templateLinks": []}
        asked._set = cedarpy.PolicySet.from_json_str(json.dumps(told))
        return asked

    def decide(self, question: Question) -> Decision:
        """The decision; never an exception for what a question holds, but a denial that says what is wrong with it."""
        found = self._answer(question)
        if found.verdict is not Verdict.PENDING:
            return found
        lifted = self._answer(self._approved(question))
        return found if lifted.is_permitted else replace(lifted, verdict=Verdict.DENIED, approvals=())

    def _approved(self, question: Question) -> Question:
        """The question as it is once every role that the policy names has approved; some have no approvals."""
        if "approvals" not in question.context:
            return question
        roles = {rule.approval for rule in self.rules if rule.approval} | set(question.context["approvals"])
        return replace(question, context=dict(question.context) | {"approvals": sorted(roles)})

    def _answer(self, question: Question) -> Decision:
        """What Cedar says; pending where approvals might lift what forbids."""
        request = {
            "principal": _named(question.principal.uid),
            "action": _named(("Action", question.action)),
            "resource": _named(question.resource.uid),
            "context": _context(question),
        }
        try:
            answer = cedarpy.is_authorized(request, self._set, _entities(question), schema())
        except Exception as error:  # whatever a value does to Cedar's reader, it is no permission
            return self._denied(f"{type(error).__name__}: {error}")
        if answer.diagnostics.errors:
            return self._denied("; ".join(self._renamed(error) for error in answer.diagnostics.errors))
        deciding = [self._names[name] for name in answer.diagnostics.reasons]
        ids = tuple(sorted(rule.id for rule in deciding))
        if answer.decision is cedarpy.Decision.Allow:
            return Decision(Verdict.PERMITTED, ids, self.hash)
        roles = [rule.approval for rule in deciding]
        if roles and all(roles):
            return Decision(Verdict.PENDING, ids, self.hash, tuple(sorted(set(roles))))
        return Decision(Verdict.DENIED, ids, self.hash)

    def _denied(self, error: str) -> Decision:
        return Decision(Verdict.DENIED, (), self.hash, error=error[:1000])

    def _told(self, error: "cedarpy.ValidationError") -> tuple[str, Mapping[str, Any], str]:
        rule = self._names[error.policy_id]
        return f"line {rule.line}: rule {rule.id}", rule.form, self._renamed(error.error)

    def _renamed(self, told: str) -> str:
        """Cedar's text, with the rules' own names."""
        said = re.sub(
            r"`?policy(\d+)`?", lambda m: self._names[f"policy{m[1]}"].id if int(m[1]) < len(self.rules) else m[0], told
        )
        return " ".join(said.split())


def _context(question: Question) -> dict[str, Any]:
    """The context. What has parts of its own is an entity to Cedar, which a rule reads in the same words."""
    return {
        key: {"__entity": _named(_part(key))} if isinstance(value, Mapping) else value
        for key, value in question.context.items()
    }


def _entities(question: Question) -> "cedarpy.Entities":
    """Who and what is asked about, and the parts of the context, held against the schema."""
    parts = [Entity(_part(key), value) for key, value in question.context.items() if isinstance(value, Mapping)]
    found = {one.uid: one.as_json() for one in (*question.others, question.principal, question.resource, *parts)}
    return _checked_entities(json.dumps(list(found.values())))


@lru_cache(maxsize=256)
def _checked_entities(text: str) -> "cedarpy.Entities":
    """Kept, since checking them takes Cedar longer than deciding, and most stay the same from round to round."""
    return cedarpy.Entities.from_json_str(text, schema())


def _part(key: str) -> Uid:
    """A part of the context as an entity: its type is its name, in capitals as types are."""
    return key.capitalize(), key


@cache
def schema() -> "cedarpy.Schema":
    """The schema, parsed once."""
    return cedarpy.Schema.from_str(schema_text())


def schema_text() -> str:
    """The schema, as Cedar reads it."""
    return files(__package__).joinpath("schema.cedarschema").read_text(encoding="utf-8")


def _named(uid: Uid) -> dict[str, str]:
    return {"type": uid[0], "id": uid[1]}


def _parsed(text: str) -> Sequence[Rule]:
    if text.rstrip().rpartition("\n")[2].strip() != END:
        raise PolicyError([f"its last line is not {END!r}: it may have been cut short"], _REMEDY)
    deep = problem_of_depth(text)
    if deep is not None:
        raise PolicyError([deep], _REMEDY)
    try:
        told = json.loads(cedarpy.policies_to_json_str(text))
    except RecursionError:
        raise PolicyError(["a rule is nested too deeply"], _REMEDY) from None
    except ValueError as error:
        raise PolicyError([_located(text, error)], _REMEDY) from None
    if told.get("templates") or told.get("templateLinks"):
        raise PolicyError(["a policy with ?principal or ?resource is a template, and decides nothing"], _REMEDY)
    found = sorted(told["staticPolicies"].items(), key=lambda one: int(one[0].removeprefix("policy")))
    problems, rules, seen = [], [], set[str]()
    lines = [place.line for place in places(text)]
    for place, (_, form) in enumerate(found):
        line = lines[place] if len(lines) == len(found) else 0
        notes = form.get("annotations") or {}
        name = notes.get("id") or ""
        approval = notes["approval"] or "" if "approval" in notes else None  # Cedar reads a bare @approval as null
        if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
            problems.append(f'line {line}: the rule needs an @id("...") of lower-case letters, digits and dashes')
        elif name in seen:
            problems.append(f'line {line}: another rule has @id("{name}") already')
        if approval is not None and not re.fullmatch(NAME_PATTERN, approval, re.ASCII):
            problems.append(f'line {line}: rule {name}: @approval needs a role, such as @approval("data-steward")')
        if approval is not None and form["effect"] != "forbid":
            problems.append(f"line {line}: rule {name}: @approval belongs to a forbid, and means nothing with a permit")
        seen.add(name)
        rules.append(Rule(name, form["effect"], approval or "", form, line))
    if problems:
        raise PolicyError(problems, _REMEDY)
    return tuple(rules)


def _located(text: str, error: Exception) -> str:
    """What Cedar says of a text that it cannot read, with the first rule that it cannot."""
    for place in places(text):
        try:
            cedarpy.policies_to_json_str(place.text)
        except ValueError as found:
            named = f"rule {place.id}: " if place.id else ""
            return f"line {place.line}: {named}{' '.join(str(found).split())}"
    return " ".join(str(error).split())
