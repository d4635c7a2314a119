"""Conditions read as alternatives say what Cedar says, and no contradiction is seen where there is none."""

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_questions import permit_when, question, rules_of
from privet.privacy.policy.changes import matches
from privet.privacy.policy.check import Known, doubts
from privet.privacy.policy.conditions import Span, alternatives, is_possible, read, spans, term_of, terms_in
from privet.privacy.policy.explain import explained
from privet.privacy.policy.rules import Rule

_ATOMS = (
    "context.time.hour >= 8",
    "context.time.hour < 18",
    "9 <= context.time.hour",
    "context.time.hour == 12",
    "context.time.hour != 12",
    "context.plan.isPrivate",
    'context.plan.unit == "record"',
    '["record", "node"].contains(context.plan.unit)',
    'context.approvals.contains("steward")',
    "context.plan.rounds * context.plan.localSteps > 30",
    'context.plan.name like "st*"',
    "true",
)


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, st.sampled_from(("&&", "||")), inner).map(lambda one: f"({one[0]} {one[1]} {one[2]})")
    choices = st.tuples(inner, inner, inner).map(lambda one: f"(if {one[0]} then {one[1]} else {one[2]})")
    return pairs | choices | inner.map(lambda one: f"!({one})")


_CONDITIONS = st.recursive(st.sampled_from(_ATOMS), _joined, max_leaves=6)
_CASES = st.fixed_dictionaries(
    {
        "hour": st.integers(0, 23),
        "isPrivate": st.booleans(),
        "unit": st.sampled_from(("record", "node", "none")),
        "rounds": st.integers(1, 30),
        "name": st.sampled_from(("study", "other")),
        "approvals": st.sampled_from(([], ["steward"])),
    }
)


def rule_of(condition: str) -> Rule:
    return rules_of(permit_when("a", condition)).rules[0]


@settings(max_examples=60, deadline=None)
@given(condition=_CONDITIONS, case=_CASES)
def test_alternatives_hold_exactly_where_cedar_says_so(condition: str, case: dict[str, object]) -> None:
    conditions, asked = rule_of(condition).form["conditions"], question(**case)  # type: ignore[arg-type]  # of any type
    holds = matches(conditions, asked)
    for wanted in (True, False):
        ways = alternatives(conditions, wanted)
        assert ways is not None
        found = [
            way
            for way in ways
            if all(matches([{"kind": "when" if f.holds else "unless", "body": f.form}], asked) for f in way)
        ]
        assert bool(found) == (holds == wanted)
        assert all(map(is_possible, found)), "what holds is possible"


@settings(max_examples=60, deadline=None)
@given(condition=_CONDITIONS, case=_CASES)
def test_what_is_said_never_to_match_never_does(condition: str, case: dict[str, object]) -> None:
    """And the same of what is said always to hold. No question is asked about a rule that cannot be answered."""
    rules, asked = rules_of(permit_when("a", condition)), question(**case)  # type: ignore[arg-type]  # of any type
    told = " ".join(doubt.text for doubt in doubts(rules, Known("node")) if doubt.rule == "a")
    permitted = rules.decide(asked).is_permitted
    assert not (permitted and "can never match" in told)
    assert permitted or "its conditions always hold" not in told
    assert explained(rules, asked).decision.is_permitted == permitted


def test_contradictions_are_seen() -> None:
    for condition in (
        "context.time.hour >= 18 && context.time.hour < 8",
        "context.time.hour > 23",
        'context.plan.unit == "rekord"',
        'context.plan.task == "digits" && context.plan.task == "iris"',
        "context.plan.isPrivate && !context.plan.isPrivate",
        'context.approvals.contains("a") && !context.approvals.contains("a")',
        "context.plan.epsilon < 0",
        "context.plan.minNodes == 2 && context.plan.minNodes != 2",
    ):
        ways = alternatives(rule_of(condition).form["conditions"])
        assert ways is not None
        assert not any(map(is_possible, ways)), condition


def test_what_cannot_be_read_is_possible() -> None:
    (way,) = alternatives(rule_of("context.plan.rounds * 2 < 0").form["conditions"]) or ()
    assert is_possible(way)
    assert read(way[0]) is None
    assert list(terms_in(way[0].form)) == [("context", "plan", "rounds")]


def test_bounds_of_one_term_are_put_together() -> None:
    (way,) = alternatives(rule_of("context.time.hour >= 8 && context.time.hour < 18").form["conditions"]) or ()
    assert spans(way) == {("context", "time", "hour"): Span(low=8, high=17)}
    assert term_of({"Value": 3}) is None


def test_too_many_alternatives_are_none() -> None:
    """A rule of twenty choices would have a million alternatives: nothing is said of it."""
    choice = "(context.time.hour == 1 || context.time.hour == 2)"
    assert alternatives(rule_of(" && ".join([choice] * 20)).form["conditions"]) is None
