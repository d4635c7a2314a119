"""What `privet policy allow` writes: one permit, and one forbid for each bound, for those who do not write Cedar.

The rules:
1. A number means what was typed: it is permitted exactly, and nothing above (or below). What Cedar's units cannot hold
   is an error, not rounded.
2. Every rule's @id begins with the grant's, so that a refusal names it and `--replace` finds it. A name may end like a
   bound (data set `ward7-parties`): what is replaced has to be the same grant's, by effect, scope and project.
3. Bounds are forbids: a rule that somebody adds later cannot undo them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ..errors import UsageError
from ..plan import NAME_PATTERN
from .rules import END, LARGEST, Rules
from .source import Place, places
from .terms import MILLIONTH, TRILLIONTH

SUFFIXES = (
    *("epsilon", "delta", "noise", "min-nodes", "parties", "secure-aggregation"),
    *("weekdays", "hours", "until", "approval"),
)
LONGEST_ID = 63 - 1 - max(map(len, SUFFIXES))  # characters: the rules' ids are names too
_TOUCHES = 'action in [Action::"admit", Action::"train", Action::"evaluate"]'
_ROUNDS = 'action in [Action::"train", Action::"evaluate", Action::"releaseUpdate", Action::"releaseMetric"]'
_PARTICIPATE, _RUN_APP = 'action in Action::"participate"', 'action == Action::"runApp"'
_PROJECT = re.compile(r'context\.plan\.project == "([^"]*)"')
_DAYS = '["monday", "tuesday", "wednesday", "thursday", "friday"].contains(context.time.weekday)'


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may do what, on which terms. A task with its data set, or an app; a bound that is None is not set.

    `epsilon`: of all runs of the operator on the data set's account together; with `project`, of the project's.
    `key`: fingerprint; empty where the operator is known by name alone. `has_peers`: whether parties are pinned; then
    only these count. `hours`: from the first to before the second.
    """

    id: str
    operator: str
    key: str = ""
    task: str = ""
    dataset: str = ""
    app: str = ""
    project: str = ""
    epsilon: Decimal | None = None
    delta: Decimal | None = None
    noise: Decimal | None = None
    min_nodes: int | None = None
    parties: int | None = None
    has_peers: bool = False
    secure_aggregation: bool = False
    weekdays: bool = False
    hours: tuple[int, int] | None = None
    until: date | None = None
    approval: str = ""

    def __post_init__(self) -> None:
        for what in ("id", "operator", "task", "dataset", "app", "project", "approval"):
            given = getattr(self, what)
            if given and not re.fullmatch(NAME_PATTERN, given, re.ASCII):
                raise UsageError(
                    f"--{what} {given[:80]!r}: a name has lower-case letters, digits, dots and dashes", f"--{what} NAME"
                )
        if len(self.id) > LONGEST_ID:
            raise UsageError(f"the rules' id {self.id} is longer than {LONGEST_ID} characters", "--id NAME, a shorter")
        if self.key and not re.fullmatch("[0-9a-f]{64}", self.key):
            raise UsageError(f"--key {self.key[:80]!r}: a fingerprint has 64 hexadecimal digits", "--key FINGERPRINT")
        self._check_bounds()

    def _check_bounds(self) -> None:
        for name in ("epsilon", "delta", "noise", "min_nodes", "parties"):
            bound = getattr(self, name)
            if bound is not None and bound <= 0:
                raise UsageError(f"--{name.replace('_', '-')} {bound}: not above 0", "a number above 0")
        if self.hours is not None and not 0 <= self.hours[0] < self.hours[1] <= 24:
            raise UsageError(f"--hours {self.hours[0]}-{self.hours[1]}: not two hours of one day", "--hours 8-18")

    @property
    def ids(self) -> frozenset[str]:
        """The ids that its rules may have."""
        return frozenset((self.id, *(f"{self.id}-{suffix}" for suffix in SUFFIXES)))


def text_of(grant: Grant) -> str:
    """The rules, each under a comment that says it in words.

    >>> grant = Grant("a", "alice", task="digits", dataset="ward7", epsilon=Decimal("0.5"))
    >>> print(text_of(grant).splitlines()[-1])
    unless { context.account.epsilonOfOperator <= 500000 };
    """
    return "\n".join(_rules(grant))


def added(text: str, grant: Grant, is_replaced: bool) -> str:
    """The policy with the grant's rules before its end; raise UsageError where its id is taken and not replaced."""
    there = [place for place in places(text) if place.id in grant.ids]
    if there:
        _check_own(grant, text)
    if there and not is_replaced:
        raise UsageError(
            f"line {there[0].line}: there is a rule {there[0].id} already",
            "--replace, which puts these in its place, or --id NAME",
        )
    kept, end, _ = _without(text, there).rpartition(END)
    if not end:
        raise UsageError(f"the policy's last line is not {END!r}", "privet policy check")
    return f"{kept.rstrip()}\n\n{text_of(grant)}\n{END}\n"


def in_units(value: Decimal, unit: Decimal, option: str) -> int:
    """A bound in Cedar's units, exactly; raise UsageError where it has more digits than they hold.

    >>> in_units(Decimal("3"), MILLIONTH, "--epsilon")
    3000000
    """
    count = Fraction(value) / Fraction(unit)  # a Decimal would keep 28 digits of it
    if count.denominator != 1 or count > LARGEST:
        digits = -int(unit.logb())
        raise UsageError(f"{option} {value}: more than {digits} digits after the point", f"{option} with fewer digits")
    return int(count)


def _rules(grant: Grant) -> Iterator[str]:
    action = _RUN_APP if grant.app else _PARTICIPATE
    yield _rule(grant, "", _whole(grant), "permit", action, _permitted(grant), "when")
    yield from _bounds(grant, action)


def _bounds(grant: Grant, action: str) -> Iterator[str]:
    def forbid(suffix: str, words: str, condition: str, over: str = action, notes: str = "") -> str:
        return _rule(grant, suffix, words, "forbid", over, condition, "unless", notes)

    whose = f"project {grant.project}" if grant.project else f"operator {grant.operator}"
    touches, begins = (action, "Runs begin") if grant.app else (_TOUCHES, "Records are touched")
    if grant.epsilon is not None:
        part = "epsilonOfProject" if grant.project else "epsilonOfOperator"
        limit = in_units(grant.epsilon, MILLIONTH, "--epsilon")
        words = f"All runs of {whose} on this account together cost at most epsilon {grant.epsilon}."
        yield forbid("epsilon", words, f"context.account.{part} <= {limit}")
    if grant.delta is not None:
        limit = in_units(grant.delta, TRILLIONTH, "--delta")
        yield forbid("delta", f"Delta is at most {grant.delta}.", f"context.plan.delta <= {limit}")
    if grant.noise is not None:
        limit = in_units(grant.noise, MILLIONTH, "--noise")
        words = f"The noise multiplier is at least {grant.noise}."
        yield forbid("noise", words, f"context.plan.noiseMultiplier >= {limit}")
    if grant.min_nodes is not None:
        least = "context.minNodes" if grant.app else "context.plan.minNodes"
        words = f"A round takes at least {grant.min_nodes} nodes, as the plan says."
        yield forbid("min-nodes", words, f"{least} >= {grant.min_nodes}")
    if grant.parties is not None:
        pinned = "context.cohort.arePinned && " if grant.has_peers else ""
        whose = "pinned parties" if grant.has_peers else "parties"
        words = f"At least {grant.parties} {whose} take part in a round, this one among them."
        yield forbid("parties", words, f"{pinned}context.cohort.parties >= {grant.parties}", _ROUNDS)
    if grant.secure_aggregation:
        yield forbid("secure-aggregation", "The server sees the sum alone.", "context.plan.secureAggregation")
    if grant.weekdays:
        words = f"{begins} from Monday to Friday; what has begun may be answered later."
        yield forbid("weekdays", words, _DAYS, touches)
    if grant.hours is not None:
        begin, end = grant.hours
        words = f"{begins} from {begin}:00 to {end}:00; what has begun may be answered later."
        yield forbid("hours", words, f"context.time.hour >= {begin} && context.time.hour < {end}", touches)
    if grant.until is not None:
        words = f"Until {grant.until}, that day among them."
        yield forbid("until", words, f"context.time.date <= {grant.until:%Y%m%d}")
    if grant.approval:
        words = f"A person approves each run: {grant.approval}."
        condition = f'context.approvals.contains("{grant.approval}")'
        yield forbid("approval", words, condition, notes=f' @approval("{grant.approval}")')


def _whole(grant: Grant) -> str:
    what = f"run app {grant.app}" if grant.app else f"train {grant.task} on data set {grant.dataset}"
    project = f" in project {grant.project}" if grant.project else ""
    bounds = "; the rules below say on which terms" if len(tuple(_bounds(grant, _PARTICIPATE))) else ""
    return f"Operator {grant.operator} may {what}{project}{bounds}."


def _permitted(grant: Grant) -> str:
    """The conditions of the permit."""
    parts = [f'principal.key == "{grant.key}"'] if grant.key else []
    parts += [f'context.plan.task == "{grant.task}"'] if grant.task else []
    parts += [f'context.plan.project == "{grant.project}"'] if grant.project else []
    return "\n    && ".join(parts)


def _rule(
    grant: Grant, suffix: str, words: str, effect: str, action: str, condition: str, kind: str, notes: str = ""
) -> str:
    name = f"{grant.id}-{suffix}" if suffix else grant.id
    resource = f'App::"{grant.app}"' if grant.app else f'Dataset::"{grant.dataset}"'
    scope = f'principal == Operator::"{grant.operator}", {action}, resource == {resource}'
    lines = [f"// {words}", f'@id("{name}"){notes}']
    lines += [f"{effect} ({scope})"] if len(scope) < 105 else _spread(effect, scope)
    if grant.project and effect == "forbid":
        lines.append(f'when {{ context.plan.project == "{grant.project}" }}')
    lines += [f"{kind} {{ {condition} }}"] if condition else []
    return "\n".join(lines) + ";\n"


def _spread(effect: str, scope: str) -> Sequence[str]:
    """The scope, a line for each part."""
    principal, action, resource = re.split(r", (?=action|resource)", scope)
    return [f"{effect} (", f"    {principal},", f"    {action},", f"    {resource}", ")"]


def _check_own(grant: Grant, text: str) -> None:
    """Raise UsageError where an id of the grant's is another's: replaced, a bound of that one would be gone."""
    own = _owners(f"{text_of(grant)}\n{END}\n")[grant.id]
    there = _owners(text)
    for place in places(text):
        effect = "permit" if place.id == grant.id else "forbid"
        if place.id in grant.ids and there[place.id] != {**own, "effect": effect}:
            raise UsageError(f"line {place.line}: rule {place.id} is not of this grant", "--id NAME, another")


def _owners(text: str) -> Mapping[str, Mapping[str, Any]]:
    """Whom and what each rule is for, by its id."""
    projects = {place.id: set(_PROJECT.findall(place.text)) for place in places(text)}
    return {
        rule.id: {part: rule.form[part] for part in ("effect", "principal", "resource")}
        | {"projects": projects[rule.id]}
        for rule in Rules(text).rules
    }


def _without(text: str, some: Sequence[Place]) -> str:
    for place in reversed(some):
        text = text[: place.start].rstrip("\n") + "\n\n" + text[place.end :].lstrip("\n")
    return text
