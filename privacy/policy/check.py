"""Questions that a reviewer would ask of a policy that is valid: what can never match, and what permits without bounds.

They are read from the rules' conditions (conditions.py): what is said of a rule is so, but not all that is so is said.
A permit counts as bounded where it, or a forbid that may apply to the same, speaks of the term.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .conditions import Fact, Form, Term, alternatives, entities_in, is_possible, read, terms_in
from .rules import Rule, Rules
from .vocabulary import actions, covered, meant

_NODE_ACTIONS = frozenset(name for name, asked in actions().items() if "participate" in asked.groups) | {"runApp"}
_TOUCHES = ("train", "evaluate", "releaseUpdate", "releaseMetric")
_ACCOUNT = ("context", "account")
EPSILON: frozenset[Term] = frozenset(
    (
        ("context", "plan", "epsilon"),
        *((*_ACCOUNT, name) for name in ("epsilonAfter", "epsilonOfOperator", "epsilonOfProject")),
    )
)
_END: frozenset[Term] = frozenset((("context", "time", "date"), ("context", "plan", "expires"), ("context", "expires")))
_KEY: frozenset[Term] = frozenset((("principal", "key"), ("principal", "isPinned")))
_PARTIES: Term = ("context", "cohort", "parties")
_NAMES: Mapping[Term, str] = {  # terms whose words are names that are known here, by the type of what they name
    ("context", "plan", "task"): "Task",
    ("context", "plan", "dataset"): "Dataset",
    ("context", "plan", "project"): "Project",
    ("context", "app"): "App",
}
_RESOURCES = frozenset((*_NAMES, ("context", "account", "name"), ("resource", "account"), ("resource",)))


@dataclass(frozen=True, slots=True)
class Known:
    """What the party knows, whose policy it is. `names`: by type, such as Dataset; a type that is missing is not known.

    `pins`: the key of each operator that is pinned here; `has_peers`: whether any peer's key is.
    """

    side: Literal["node", "server"]
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    has_peers: bool = False


@dataclass(frozen=True, slots=True)
class Doubt:
    """A question on a rule (on all of them, where `rule` is empty)."""

    rule: str
    line: int
    text: str

    @property
    def told(self) -> str:
        """In one line."""
        return f"line {self.line}: rule {self.rule}: {self.text}" if self.rule else self.text


def doubts(rules: Rules, known: Known) -> Sequence[Doubt]:
    """Every question, in the order of the rules; those on the whole policy come last."""
    found = [Doubt(rule.id, rule.line, text) for rule in rules.rules for text in _of_rule(rule, rules, known)]
    return found + [Doubt("", 0, text) for text in _of_all(rules, known)]


def _of_rule(rule: Rule, rules: Rules, known: Known) -> Iterator[str]:
    never = _why_never(rule, known)
    if never:
        yield never
        return
    yield from _unknown_names(rule, known)
    if rule.form["conditions"] and _always(rule):
        yield "its conditions always hold: leave them out, or mend them"
    yield from _approvals(rule)
    if known.side == "node":
        yield from _cohort(rule, known)
    if rule.effect == "permit":
        yield from _shadowed(rule, rules)
        yield from (_permit_of_node(rule, rules, known) if known.side == "node" else _permit_of_server(rule))


def _of_all(rules: Rules, known: Known) -> Iterator[str]:
    permitted = frozenset[str]().union(*(covered(one.form) for one in rules.rules if one.effect == "permit"))
    if not permitted:
        yield "no rule permits anything: every request is refused; privet policy allow writes a rule that permits"
    elif known.side == "node" and "admit" in permitted and not permitted >= set(_TOUCHES):
        lacking = ", ".join(name for name in _TOUCHES if name not in permitted)
        yield f"admit is permitted, {lacking} never: a run would be charged and stopped"


# ---- what never matches ----


def _why_never(rule: Rule, known: Known) -> str:
    asked = covered(rule.form) & _NODE_ACTIONS if known.side == "node" else covered(rule.form) - _NODE_ACTIONS
    if not asked:
        return f"can never match: a {known.side} asks no action that it covers"
    if known.side == "node" and "Project" in {kind for kind, _ in entities_in(rule.form["principal"])}:
        return "can never match: a node knows of no operator's projects; write context.plan.project instead"
    ways = alternatives(rule.form["conditions"])
    if ways is not None and not any(map(is_possible, ways)):
        return "can never match: its conditions contradict one another"
    return ""


def _always(rule: Rule) -> bool:
    """Whether its conditions hold whatever is asked."""
    ways = alternatives(rule.form["conditions"], wanted=False)
    return ways is not None and not any(map(is_possible, ways))


def _unknown_names(rule: Rule, known: Known) -> Iterator[str]:
    form = rule.form
    named = [one for part in ("principal", "resource", "conditions") for one in entities_in(form[part])]
    named += [(_NAMES[term], word) for term, word in _words(rule) if term in _NAMES]
    for kind, name in dict.fromkeys(named):
        there = known.names.get(kind)
        if there is not None and name and name not in there:
            heard = "pinned here: nobody listens to it" if known.side == "node" and kind == "Operator" else "known here"
            yield f"{kind} {name} is not {heard}; {meant(name, there)}"
    operator = form["principal"].get("entity", {}).get("id", "")
    for term, word in _words(rule):
        pinned = known.pins.get(operator)
        if term == ("principal", "key") and pinned is not None and word != pinned:
            yield f"names key {word[:16]}… for {operator}, who is pinned here with key {pinned[:16]}…"


def _words(rule: Rule) -> Iterator[tuple[Term, str]]:
    """Every term that is held against a word, and the word."""
    ways = alternatives(rule.form["conditions"]) or ()
    facts: dict[str, Fact] = {fact.key: fact for way in ways for fact in way}
    for reading in filter(None, map(read, facts.values())):
        for word in sorted(map(str, (reading.span.words or frozenset()) | reading.span.but)):
            yield reading.term, word


# ---- persons and parties ----


def _approvals(rule: Rule) -> Iterator[str]:
    asks = ("context", "approvals") in _terms(rule)
    if rule.approval and f'"{rule.approval}"' not in str(rule.form["conditions"]).replace("'", '"'):
        yield f"waits for {rule.approval}, whom no condition names: no approval would ever lift it"
    if rule.effect == "forbid" and asks and not rule.approval:
        yield 'speaks of approvals without @approval("ROLE"): it refuses, and nobody is asked'


def _cohort(rule: Rule, known: Known) -> Iterator[str]:
    terms = _terms(rule)
    if ("context", "cohort", "told") in terms:
        yield "context.cohort.told is what the server says; write context.cohort.parties"
    if _PARTIES in terms and not known.has_peers:
        yield "no peer is pinned (privet node trust-peer): coordinator trusted to name parties"


# ---- permits ----


def _shadowed(rule: Rule, rules: Rules) -> Iterator[str]:
    for other in rules.rules:
        if other.effect == "forbid" and _is_within(rule, other) and _always(other):
            yield f"permits nothing: rule {other.id} (line {other.line}) forbids all of it, on no condition"


def _permit_of_server(rule: Rule) -> Iterator[str]:
    scope = rule.form["principal"]["op"], rule.form["action"]["op"], rule.form["resource"]["op"]
    if scope == ("All", "All", "All") and not rule.form["conditions"]:
        yield "permits everybody everything"


def _permit_of_node(rule: Rule, rules: Rules, known: Known) -> Iterator[str]:
    is_bounded = _bounding(rule, rules)
    if not is_bounded(lambda term: term[0] == "principal") and rule.form["principal"]["op"] in ("All", "is"):
        yield 'permits every operator; name one, as in: principal == Operator::"alice"'
    if not is_bounded(lambda term: term in _RESOURCES) and rule.form["resource"]["op"] in ("All", "is"):
        yield 'permits every data set; name one, as in: resource == Dataset::"ward7"'
    if "admit" in covered(rule.form) and not is_bounded(EPSILON.__contains__):
        yield "permits without a bound on epsilon; forbid unless context.account.epsilonOfOperator <= …"
    if not is_bounded(_END.__contains__):
        yield "permits without an end; forbid unless context.time.date <= …"
    if not known.pins and not is_bounded(_KEY.__contains__):
        yield "names no key, and no operator is pinned here: coordinator trusted to name operators"


def _bounding(rule: Rule, rules: Rules) -> Callable[[Callable[[Term], bool]], bool]:
    """Tells whether a term of some kind stands in the rule, or in a forbid that may apply to what it permits."""
    applying = [one for one in rules.rules if one.effect == "forbid" and _may_meet(rule, one)]
    terms = frozenset[Term]().union(_terms(rule), *(_terms(one) for one in applying))
    return lambda is_meant: any(map(is_meant, terms))


def _terms(rule: Rule) -> frozenset[Term]:
    return frozenset(term for one in rule.form["conditions"] for term in terms_in(one["body"]))


def _may_meet(rule: Rule, other: Rule) -> bool:
    """Whether both may apply to one request."""
    for part in ("principal", "resource"):
        if rule.form[part]["op"] == other.form[part]["op"] == "==" and rule.form[part] != other.form[part]:
            return False
    return bool(covered(rule.form) & covered(other.form))


def _is_within(rule: Rule, other: Rule) -> bool:
    """Whether whatever the rule's scope covers is covered by the other's."""
    parts = ("principal", "resource")
    are_within = all(_scope_is_within(rule.form[part], other.form[part]) for part in parts)
    return are_within and covered(rule.form) <= covered(other.form)


def _scope_is_within(inner: Form, outer: Form) -> bool:
    if outer["op"] == "All" or inner == outer:
        return True
    kind: Any = inner.get("entity_type") or inner.get("entity", {}).get("type")
    return outer["op"] == "is" and "in" not in outer and inner["op"] in ("==", "is") and kind == outer["entity_type"]
