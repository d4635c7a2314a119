"""What is said of a decision is so: every change that is told of lifts what it is told for, and is the nearest."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_questions import forbid_unless, permit_when, question, rules_of
from privet.privacy.policy.changes import changed_by, changes
from privet.privacy.policy.explain import Explained, explained
from privet.privacy.policy.rules import Rules, Verdict

ALL = permit_when("all", "true")


def texts(told: Explained) -> list[str]:
    return [change.text for one in told.said for change in one.changes or ()]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("context.plan.epsilon <= 2000000", "epsilon 3 -> at most 2"),
        ("context.plan.delta < 10000000", "delta 1e-05 -> at most 0.000009999999"),
        ("context.plan.minNodes >= 5", "min-nodes 2 -> at least 5"),
        ("context.time.hour >= 8 && context.time.hour < 18", "hour 19 -> from 8 to 17"),
        ('context.plan.unit == "node"', "unit record -> node"),
        ('["monday", "tuesday"].contains(context.time.weekday)', "weekday sunday -> monday or tuesday"),
        ('context.approvals.contains("steward")', "approvals none -> with steward"),
        ("context.plan.secureAggregation", "secure-aggregation no -> yes"),
        ("context.plan.rounds * context.plan.localSteps <= 4", "rounds 3 -> at most 2"),
        ("context.plan.rounds * 3 >= 21", "rounds 3 -> at least 7"),
        ("context.plan.rounds * 3 != 9", "rounds 3 -> such as 2"),  # 4 would do as well
        ("context.plan.rounds * 2 == 2", "rounds 3 -> such as 1"),  # 0 would not
        (
            "context.account.epsilonOfOperator <= context.account.epsilonAfter",
            "epsilon of the operator's runs on the account 5 -> at most 3",
        ),
        ('context.plan.name != "study"', "name study -> other than study"),
        ('principal.key == "cd"', "the operator's key ab -> cd"),
        ("context.time.date >= 20270101", "date 2026-11-22 -> at least 2027-01-01"),
        ("context.plan.evaluationNoise < 20", "evaluation-noise without bound -> at most 0.000019"),
    ],
)
def test_the_change_that_lifts_a_forbid(condition: str, wanted: str) -> None:
    told = explained(rules_of(ALL, forbid_unless("no", condition)), question())
    assert told.decision.verdict is Verdict.DENIED
    assert texts(told) == [wanted]
    assert told.then is not None
    assert told.then.is_permitted
    assert "  with that it would be permitted" in told.lines()


@pytest.mark.parametrize(
    ("limit", "own", "means"),
    [
        (4_000_000, 2_999_993, ": this plan at most 1.99 epsilon"),
        (4_000_007, 2_999_993, ": this plan at most 2.0 epsilon"),
        (2_000_009, 3_000_000, ": this plan at most 0.000009 epsilon"),
        (2_000_000, 3_000_000, ""),
        (4_000_000, 0, ""),
    ],
)
@pytest.mark.parametrize("whose", ["operator", "project"])
def test_a_smaller_sum_says_what_is_left_for_the_plan(limit: int, own: int, means: str, whose: str) -> None:
    rules = rules_of(ALL, forbid_unless("no", f"context.account.epsilonOf{whose.capitalize()} <= {limit}"))
    asked = question()
    sums = {"epsilonOfOperator": 5_000_000, "epsilonOfProject": 5_000_000}
    asked = replace(asked, context={**asked.context, "account": {**asked.context["account"], **sums}})
    (text,) = texts(explained(rules, asked, own))
    at_most = f"{limit / 1e6:f}".rstrip("0").rstrip(".")
    assert text == f"epsilon of the {whose}'s runs on the account 5 -> at most {at_most}{means}"


def test_several_terms_change_together() -> None:
    told = explained(
        rules_of(ALL, forbid_unless("no", "context.plan.epsilon <= 2000000 && context.plan.minNodes >= 5")), question()
    )
    assert texts(told) == ["epsilon 3 -> at most 2", "min-nodes 2 -> at least 5"]


def test_making_no_claim_is_not_what_is_advised() -> None:
    rule = '@id("no") forbid (principal, action in Action::"participate", resource) when { context.plan.isPrivate } '
    told = explained(rules_of(ALL, rule + "unless { context.plan.epsilon <= 1 };"), question())
    assert texts(told) == ["epsilon 3 -> at most 0.000001"]


def test_a_forbid_on_no_condition_is_lifted_by_nothing() -> None:
    told = explained(
        rules_of(ALL, '@id("no") forbid (principal, action in Action::"participate", resource);'), question()
    )
    assert texts(told) == []
    assert any("it forbids whatever is asked" in line for line in told.lines())


def test_what_no_change_was_found_for_is_said_so() -> None:
    told = explained(rules_of(ALL, forbid_unless("no", 'context.plan.name like "x*"')), question())
    assert told.said[0].changes is None
    assert told.then is None
    assert '    would have to change: context.plan.name like "x*" has to hold' in told.lines()


def test_nearest_permit_says_what_is_not_met() -> None:
    far = '@id("far") permit (principal == Operator::"bob", action == Action::"train", resource == Dataset::"x");'
    near = '@id("near") permit (principal, action in Action::"participate", resource == Dataset::"ward8")'
    told = explained(rules_of(far, near + ' when { principal.key == "cd" };'), question())
    assert told.near is not None
    assert (told.near.rule, told.near.misses) == ("near", ('its resource is Dataset::"ward8"',))
    assert [change.text for change in told.near.changes or ()] == ["the operator's key ab -> cd"]
    assert told.lines()[0] == "admit: refused: no rule permits it"


def test_a_forbid_lifted_where_no_rule_permits_leads_to_the_nearest_permit() -> None:
    told = explained(
        rules_of(
            permit_when("other", 'context.plan.task == "iris"'), forbid_unless("no", "context.plan.minNodes >= 5")
        ),
        question(),
    )
    assert told.then is not None
    assert not told.then.is_permitted
    assert told.near is not None
    assert told.near.rule == "other"


def test_pending_names_the_role() -> None:
    steward = '@approval("steward") ' + forbid_unless("ask", 'context.approvals.contains("steward")')
    told = explained(rules_of(ALL, steward), question())
    assert told.decision.verdict is Verdict.PENDING
    assert told.lines()[:2] == [
        "admit: waits for approval: rule ask asks for the approval of steward",
        "  rule ask (line 2) asks for steward",
    ]


def test_an_evaluation_that_errs_is_told_as_such() -> None:
    told = explained(rules_of(ALL, forbid_unless("no", "context.plan.epsilon * 9223372036854775807 > 0")), question())
    assert told.decision.error
    assert "could not be evaluated" in told.lines()[0]


def test_without_any_rule() -> None:
    told = explained(Rules("// end of policy\n"), question())
    assert (told.near, told.lines()) == (None, ["admit: refused: no rule permits it"])
    assert told.as_json()["verdict"] == "denied"


@settings(max_examples=50, deadline=None)
@given(
    low=st.integers(0, 23),
    high=st.integers(0, 23),
    epsilon=st.integers(0, 6_000_000),
    nodes=st.integers(1, 6),
    hour=st.integers(0, 23),
)
def test_a_change_that_is_told_is_borne_out_by_cedar(low: int, high: int, epsilon: int, nodes: int, hour: int) -> None:
    condition = (
        f"(context.time.hour >= {low} && context.time.hour <= {high} && context.plan.epsilon <= {epsilon})"
        f" || context.plan.minNodes > {nodes}"
    )
    rules, asked = rules_of(ALL, forbid_unless("no", condition)), question(hour=hour)
    if not rules.decide(asked).is_permitted:
        found = changes(rules.rules[1], asked, wanted=False)
        assert found
        assert rules.decide(changed_by(asked, found)).is_permitted
        assert len(found) == 1, "more nodes alone would do"
