"""Explained: a decision, by which rules, what each of them saw, and what would have to change."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .changes import Change, changed_by, changes, covers, unmet, value_at
from .conditions import terms_in
from .rules import Decision, Question, Rule, Rules, Verdict
from .units import name_of, value_of

_WORDS = {Verdict.PERMITTED: "permitted", Verdict.DENIED: "refused", Verdict.PENDING: "waits for approval"}
_SUMS = (("context", "account", "epsilonOfOperator"), ("context", "account", "epsilonOfProject"))  # of single runs
_EPSILON = ("context", "plan", "epsilon")
_PARTS = ("principal", "action", "resource")


@dataclass(frozen=True, slots=True)
class Said:
    """One rule that decided. `saw`: the terms that it speaks of, with their values.

    `changes`: None where none were found; `unmet` says then what would have to be, in Cedar's words.
    """

    rule: str
    line: int
    effect: str
    approval: str
    saw: Sequence[tuple[str, str]]
    changes: tuple[Change, ...] | None
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Near:
    """The permit that comes nearest. `misses`: the parts of its scope that are not met, in words."""

    rule: str
    line: int
    misses: tuple[str, ...]
    changes: tuple[Change, ...] | None
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explained:
    """What was decided on one action. `then`: what would be, with every change of `said` in place."""

    action: str
    decision: Decision
    said: tuple[Said, ...]
    near: Near | None = None
    then: Decision | None = None

    def lines(self, name: str = "", known: Collection[str] = ()) -> Sequence[str]:
        """For a person. `name`: what the action is called; `known`: rules that were told of before."""
        told = [f"{name or self.action}: {_WORDS[self.decision.verdict]}{self._why()}"]
        for one in self.said:
            told += [f"  {line}" for line in _said_lines(one)[: 1 if one.rule in known else None]]
        if self.then is not None and self.then.is_permitted:
            told.append("  with that it would be permitted")
        elif self.then is not None and self.then.rules:
            told.append(f"  with that it would be {_WORDS[self.then.verdict]}: {self.then.why}")
        if self.near is not None:
            told += [f"  {line}" for line in _near_lines(self.near)]
        return told

    def _why(self) -> str:
        if self.decision.error or not self.decision.rules:
            return f": {self.decision.why}"
        return f": {self.decision.why}" if self.decision.verdict is Verdict.PENDING else ""

    def as_json(self) -> Mapping[str, Any]:
        """For `--json`."""
        told: dict[str, Any] = {
            "action": self.action,
            "verdict": self.decision.verdict.value,
            "rules": list(self.decision.rules),
            "approvals": list(self.decision.approvals),
            "error": self.decision.error,
            "said": [
                {"rule": one.rule, "line": one.line, "effect": one.effect, "saw": dict(one.saw)}
                | {"changes": _changes_json(one.changes), "unmet": list(one.unmet)}
                for one in self.said
            ],
            "then": self.then.verdict.value if self.then else None,
        }
        if self.near is not None:
            near = {"rule": self.near.rule, "line": self.near.line, "misses": list(self.near.misses)}
            told["nearest"] = near | {"changes": _changes_json(self.near.changes), "unmet": list(self.near.unmet)}
        return told


def explained(rules: Rules, question: Question, own: int = 0) -> Explained:
    """The decision on a question, and why. `own`: what the plan itself costs the account, in millionths of epsilon."""
    decision = rules.decide(question)
    deciding = [rule for rule in rules.rules if rule.id in decision.rules]
    said = tuple(_said(rule, question, own) for rule in deciding)
    if decision.is_permitted or decision.error:
        return Explained(question.action, decision, said)
    if not deciding:
        return Explained(question.action, decision, (), _nearest(rules, question))
    if any(one.changes is None for one in said):
        return Explained(question.action, decision, said)
    other = changed_by(question, [change for one in said for change in one.changes or ()])
    then = rules.decide(other)
    near = _nearest(rules, other) if not then.is_permitted and not then.rules else None
    return Explained(question.action, decision, said, near, then)


def _said(rule: Rule, question: Question, own: int) -> Said:
    found = changes(rule, question, wanted=False) if rule.effect == "forbid" else ()
    missing = unmet(rule, question, wanted=False) if found is None else ()
    found = found and tuple(_with_own(change, question, own) for change in found)
    return Said(rule.id, rule.line, rule.effect, rule.approval, _seen(rule, question), found, missing)


def _with_own(change: Change, question: Question, own: int) -> Change:
    """With what a smaller sum leaves for the plan itself, once the other runs have theirs; as it was where nothing."""
    if change.term not in _SUMS:
        return change
    left = own - (value_at(change.term, question) - change.value)
    return replace(change, means=f"this plan at most {_rounded(left)} epsilon") if 0 < left < own else change


def _rounded(millionths: int) -> str:
    """Two digits after the point, never more than there is; all of them where that would be nothing."""
    short = millionths // 10_000
    return str(short / 100) if short else value_of(_EPSILON, millionths)


def _seen(rule: Rule, question: Question) -> list[tuple[str, str]]:
    terms = dict.fromkeys(term for one in rule.form["conditions"] for term in terms_in(one["body"]) if len(term) > 1)
    values = {term: value_at(term, question) for term in terms}
    return [(name_of(term), value_of(term, value)) for term, value in values.items() if value is not None]


def _nearest(rules: Rules, question: Question) -> Near | None:
    found = [_near(rule, question) for rule in rules.rules if rule.effect == "permit"]
    return min(found, key=_distance, default=None)


def _near(rule: Rule, question: Question) -> Near:
    missed = tuple(_miss(part, rule) for part in _PARTS if not covers(part, rule.form[part], question))
    found = changes(rule, question, wanted=True)
    return Near(rule.id, rule.line, missed, found, unmet(rule, question, wanted=True) if found is None else ())


def _distance(near: Near) -> tuple[int, int]:
    return len(near.misses), 99 if near.changes is None else len(near.changes)


def _miss(part: str, rule: Rule) -> str:
    scope = rule.form[part]
    entities = scope.get("entities") or [one for one in (scope.get("entity"), scope.get("in", {}).get("entity")) if one]
    named = " or ".join(f'{one["type"]}::"{one["id"]}"' for one in entities)
    return f"its {part} is {named or scope.get('entity_type', 'another')}"


def _said_lines(one: Said) -> Sequence[str]:
    verb = "permits" if one.effect == "permit" else f"asks for {one.approval}" if one.approval else "forbids"
    told = [f"rule {one.rule} (line {one.line}) {verb}"]
    if one.saw:
        told.append("  saw: " + ", ".join(f"{name} {value}" for name, value in one.saw))
    if one.changes is None:
        told += [f"  would have to change: {text}" for text in one.unmet or ("the rule itself",)]
    elif one.effect == "forbid" and not one.changes:
        told.append("  would have to change: the rule itself: it forbids whatever is asked")
    return told + [f"  would have to change: {change.text}" for change in one.changes or ()]


def _near_lines(near: Near) -> Sequence[str]:
    told = [f"nearest is rule {near.rule} (line {near.line})"]
    told += [f"  not met: {miss}" for miss in near.misses]
    if near.changes is None:
        told += [f"  not met: {text}" for text in near.unmet or ("its conditions",)]
    return told + [f"  not met: {change.text}" for change in near.changes or ()]


def _changes_json(some: tuple[Change, ...] | None) -> list[Mapping[str, str]] | None:
    if some is None:
        return None
    return [
        {"term": ".".join(one.term), "now": one.now, "wanted": one.wanted} | ({"means": one.means} if one.means else {})
        for one in some
    ]
