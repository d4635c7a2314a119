"""What `privet policy allow` writes permits exactly what was typed, and nothing beyond."""

from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_questions import question
from privet.privacy.errors import UsageError
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import END, Question, Rules
from privet.privacy.policy.source import places
from privet.privacy.policy.terms import MILLIONTH, rounded_up
from privet.privacy.policy.writer import LONGEST_ID, Grant, added, in_units, text_of

KEY = "ab" * 32
GRANT = Grant("alice-ward7", "alice", key=KEY, task="digits", dataset="ward7", epsilon=Decimal("3"))
WHOLE = replace(
    GRANT,
    delta=Decimal("1e-5"),
    noise=Decimal("0.8"),
    min_nodes=5,
    parties=5,
    secure_aggregation=True,
    weekdays=True,
    hours=(8, 18),
    until=date(2027, 6, 30),
    approval="data-steward",
)


def asked(of_operator: int = 3_000_000, **changes: Any) -> Question:
    found = question(key=KEY, **changes)
    return replace(
        found, context={**found.context, "account": {**found.context["account"], "epsilonOfOperator": of_operator}}
    )


def decide(grant: Grant, found: Question) -> tuple[bool, tuple[str, ...]]:
    decision = Rules(added(f"{END}\n", grant, is_replaced=False)).decide(found)
    return decision.is_permitted, decision.rules


def test_exactly_what_was_typed_is_permitted() -> None:
    assert decide(GRANT, asked()) == (True, ("alice-ward7",))
    assert decide(GRANT, asked(3_000_001)) == (False, ("alice-ward7-epsilon",))


@settings(max_examples=50)
@given(st.decimals(min_value=Decimal("0.000001"), max_value=Decimal(1000), places=6))
def test_a_bound_holds_at_the_digit(epsilon: Decimal) -> None:
    limit = in_units(epsilon, MILLIONTH, "--epsilon")
    assert rounded_up(epsilon) == limit
    assert rounded_up(epsilon + Decimal("1e-12")) > limit


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"delta": Decimal("1e-6")}, "delta"),
        ({"noise": Decimal("0.9")}, "noise"),
        ({"min_nodes": 3}, "min-nodes"),
        ({"secure_aggregation": True}, "secure-aggregation"),
        ({"weekdays": True}, "weekdays"),
        ({"hours": (8, 18)}, "hours"),
        ({"until": date(2026, 11, 21)}, "until"),
        ({"approval": "data-steward"}, "approval"),
    ],
)
def test_each_term_is_a_rule_that_a_refusal_names(changes: dict[str, Any], rule: str) -> None:
    assert decide(replace(GRANT, **changes), asked()) == (False, (f"alice-ward7-{rule}",))


def test_terms_that_are_met_refuse_nothing() -> None:
    met = replace(
        GRANT, delta=Decimal("1e-5"), noise=Decimal("0.8"), min_nodes=2, hours=(19, 20), until=date(2026, 11, 22)
    )
    assert decide(met, asked()) == (True, ("alice-ward7",))


def test_parties_are_counted_in_rounds_and_not_at_admission() -> None:
    few = replace(GRANT, parties=5)
    assert decide(few, asked())[0]
    cohort = {"cohort": {"told": 9, "parties": 4, "arePinned": True}, "round": 1, "attempt": 1}
    training = replace(asked(), action="train", context={**asked().context, **cohort})
    assert decide(few, training) == (False, ("alice-ward7-parties",))


def test_parties_that_are_pinned_must_stay_pinned() -> None:
    """Or whoever empties node.toml lets the coordinator's own count."""
    few = replace(GRANT, parties=5, has_peers=True)
    cohort = {"cohort": {"told": 9, "parties": 9, "arePinned": False}, "round": 1, "attempt": 1}
    training = replace(asked(), action="train", context={**asked().context, **cohort})
    assert decide(few, training) == (False, ("alice-ward7-parties",))


def test_another_key_another_task_another_operator_are_not_permitted() -> None:
    assert decide(GRANT, question(key="cd" * 32)) == (False, ("alice-ward7-epsilon",))
    for found in (question(key=KEY, operator="bob"), question(key=KEY, dataset="ward8")):
        assert decide(GRANT, found) == (False, ())
    assert not decide(GRANT, asked(task="iris"))[0]


def test_a_project_has_its_own_epsilon() -> None:
    grant = replace(GRANT, project="p", epsilon=Decimal(2))
    assert decide(grant, asked(project="q")) == (False, ())
    assert decide(grant, asked(project="p")) == (False, ("alice-ward7-epsilon",))
    assert decide(replace(grant, epsilon=Decimal(3)), asked(9_000_000, project="p")) == (True, ("alice-ward7",))


def test_rules_are_replaced_whole_and_others_stay() -> None:
    once = added(default_policy("node"), WHOLE, is_replaced=False)
    other = added(once, replace(GRANT, id="bob", operator="bob"), is_replaced=False)
    again = added(other, GRANT, is_replaced=True)
    shipped = [rule.id for rule in Rules(default_policy("node")).rules]
    assert [rule.id for rule in Rules(again).rules] == [
        *(*shipped, "bob", "bob-epsilon"),
        *("alice-ward7", "alice-ward7-epsilon"),
    ]
    assert len(places(once)) == len(shipped) + len(WHOLE.ids)
    assert added(once, WHOLE, is_replaced=True) == once


def test_an_id_that_is_taken_is_refused() -> None:
    once = added(default_policy("node"), GRANT, is_replaced=False)
    with pytest.raises(UsageError, match="there is a rule alice-ward7 already"):
        added(once, GRANT, is_replaced=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (replace(GRANT, parties=5), replace(GRANT, id="alice-ward7-parties", dataset="ward7-parties")),
        (replace(GRANT, id="alice-ward7-parties", dataset="ward7-parties"), replace(GRANT, parties=5)),
        (replace(GRANT, id="a-b-c", operator="a", dataset="b-c"), replace(GRANT, id="a-b-c", operator="a-b")),
        (replace(GRANT, project="lung"), replace(GRANT, project="kidney")),
        (GRANT, Grant("alice-ward7", "alice", app="ward7")),
    ],
)
@pytest.mark.parametrize("is_replaced", [False, True])
def test_replacing_a_grant_takes_no_rule_of_another(first: Grant, second: Grant, is_replaced: bool) -> None:
    once = added(default_policy("node"), first, is_replaced=False)
    with pytest.raises(UsageError, match=r"line \d+: rule .* is not of this grant"):
        added(once, second, is_replaced)


def test_an_app_is_permitted_by_its_name() -> None:
    app = Grant("a", "alice", app="hello", min_nodes=3, hours=(8, 18), until=date(2027, 1, 1), approval="steward")
    rules = Rules(added(default_policy("node"), app, is_replaced=False)).rules
    assert {rule.id for rule in rules} >= {"a", "a-min-nodes", "a-hours", "a-until", "a-approval"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epsilon": Decimal("0.1234567")}, "more than 6 digits"),
        ({"epsilon": Decimal("2." + 34 * "9")}, "more than 6 digits"),  # the decimal module keeps 28
        ({"delta": Decimal("1e-13")}, "more than 12 digits"),
        ({"epsilon": Decimal(0)}, "not above 0"),
        ({"hours": (18, 8)}, "not two hours of one day"),
        ({"key": "AB"}, "64 hexadecimal digits"),
        ({"operator": 'a" || true'}, "a name has lower-case letters"),
        ({"dataset": "a\nb"}, "a name has lower-case letters"),
        ({"id": "a" * (LONGEST_ID + 1)}, "longer than"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        text_of(replace(GRANT, **changes))
