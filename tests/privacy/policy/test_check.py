"""The questions of a reviewer: each is asked where it should be, and none of a policy that leaves none open."""

import pytest
from policy_questions import PARTICIPATE, forbid_unless, rules_of
from privet.privacy.policy.check import Known, doubts
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import Rules

KEY, OTHER = "ab" * 32, "cd" * 32
KNOWN = Known(
    "node",
    {"Dataset": frozenset({"ward7"}), "Task": frozenset({"digits"}), "Operator": frozenset({"alice", "eve"})},
    {"alice": KEY, "eve": OTHER},
    has_peers=True,
)
BARE = Known("node")
GOOD = f"""
@id("alice") permit (principal == Operator::"alice", action in Action::"participate", resource == Dataset::"ward7")
when {{ principal.key == "{KEY}" && context.plan.task == "digits" }};
@id("epsilon") forbid ({PARTICIPATE}) unless {{ context.account.epsilonOfOperator <= 3000000 }};
@id("end") forbid ({PARTICIPATE}) unless {{ context.time.date <= 20270630 }};
@id("cohort") forbid (principal, action == Action::"train", resource) unless {{ context.cohort.parties >= 3 }};
@id("steward") @approval("data-steward") forbid ({PARTICIPATE}) unless {{ context.approvals.contains("data-steward") }};
"""


def asked(text: str, known: Known = KNOWN, rule: str = "a") -> list[str]:
    return [doubt.text for doubt in doubts(rules_of(text), known) if doubt.rule == rule]


def test_a_policy_that_leaves_nothing_open_is_asked_nothing() -> None:
    assert not doubts(rules_of(GOOD), KNOWN)


def test_of_the_shipped_policies_only_that_a_node_permits_nothing() -> None:
    assert not doubts(Rules(default_policy("server")), Known("server"))
    (doubt,) = doubts(Rules(default_policy("node")), BARE)
    assert doubt.told.startswith("no rule permits anything")


@pytest.mark.parametrize(
    ("rule", "question"),
    [
        (f"forbid ({PARTICIPATE}) when {{ context.time.hour > 18 && context.time.hour < 8 }};", "can never match"),
        (f'forbid ({PARTICIPATE}) when {{ context.plan.unit == "rekord" }};', "can never match"),
        ('permit (principal, action == Action::"submit", resource);', "a node asks no action that it covers"),
        (
            'permit (principal in Project::"p", action == Action::"admit", resource);',
            "a node knows of no operator's projects",
        ),
        (f"forbid ({PARTICIPATE}) when {{ context.time.hour < 24 }};", "its conditions always hold"),
        (
            'permit (principal == Operator::"alicia", action == Action::"admit", resource);',
            "Operator alicia is not pinned here: nobody listens to it; did you mean alice?",
        ),
        (
            'forbid (principal, action == Action::"admit", resource == Dataset::"ward8");',
            "Dataset ward8 is not known here; did you mean ward7?",
        ),
        (
            f'forbid ({PARTICIPATE}) unless {{ context.plan.task == "digit" }};',
            "Task digit is not known here; did you mean digits?",
        ),
        (
            'permit (principal == Operator::"alice", action == Action::"admit", resource) '
            f'when {{ principal.key == "{OTHER}" }};',
            "names key cdcdcdcdcdcdcdcd… for alice, who is pinned here with key abababababababab…",
        ),
        (
            f'@approval("steward") forbid ({PARTICIPATE}) unless {{ context.approvals.contains("stewart") }};',
            "waits for steward, whom no condition names",
        ),
        (
            f'forbid ({PARTICIPATE}) unless {{ context.approvals.contains("x") }};',
            "speaks of approvals without @approval",
        ),
        (
            'forbid (principal, action == Action::"train", resource) unless { context.cohort.told > 2 };',
            "context.cohort.told is what the server says",
        ),
        (f"permit ({PARTICIPATE});", "permits every operator"),
        (f"permit ({PARTICIPATE});", "permits every data set"),
        (f"permit ({PARTICIPATE});", "permits without a bound on epsilon"),
        (f"permit ({PARTICIPATE});", "permits without an end"),
    ],
)
def test_what_is_asked_of_a_rule(rule: str, question: str) -> None:
    assert any(question in text for text in asked(f'@id("a") {rule}'))


def test_trust_in_the_coordinator_is_named_where_nobody_is_pinned() -> None:
    by_name = '@id("a") permit (principal == Operator::"alice", action in Action::"participate", resource);'
    trusted = "coordinator trusted to name operators"
    assert any(trusted in text for text in asked(by_name, BARE))
    assert not any(trusted in text for text in asked(by_name, KNOWN))
    keyed = by_name.replace(";", f' when {{ principal.key == "{KEY}" }};')
    assert not any(trusted in text for text in asked(keyed, BARE))
    assert not any(trusted in text for text in asked(by_name + forbid_unless("b", "principal.isPinned"), BARE))
    cohort = '@id("a") forbid (principal, action == Action::"train", resource) unless { context.cohort.parties > 2 };'
    assert any("coordinator trusted to name parties" in text for text in asked(cohort, BARE))
    assert not asked(cohort, KNOWN)


def test_a_bound_of_somebody_else_bounds_nothing() -> None:
    permit = '@id("a") permit (principal == Operator::"alice", action in Action::"participate", resource);'
    forbid = '@id("b") forbid (principal == Operator::"{}", action in Action::"participate", resource) '
    forbid += "unless {{ context.plan.epsilon < 3 }};"
    without = "permits without a bound on epsilon; forbid unless context.account.epsilonOfOperator <= …"
    assert without not in asked(permit + forbid.format("alice"))
    assert without in asked(permit + forbid.format("eve"))


def test_what_is_forbidden_on_no_condition_is_shadowed() -> None:
    shut = f'@id("shut") forbid (principal is Operator, {PARTICIPATE.removeprefix("principal, ")});'
    permit = (
        '@id("a") permit (principal == Operator::"alice", action == Action::"admit", resource == Dataset::"ward7");'
    )
    assert any("permits nothing: rule shut (line 1) forbids all of it" in text for text in asked(shut + permit))
    narrow = shut.replace("resource", 'resource == Dataset::"ward8"')
    assert not any("permits nothing" in text for text in asked(narrow + permit))


def test_what_is_admitted_and_never_trained_is_noticed() -> None:
    told = [
        doubt.text
        for doubt in doubts(rules_of('@id("a") permit (principal, action == Action::"admit", resource);'), BARE)
    ]
    assert (
        told[-1]
        == "admit is permitted, train, evaluate, releaseUpdate, releaseMetric never: a run would be charged and stopped"
    )


def test_everything_to_everybody_at_a_server() -> None:
    known = Known("server", {"Project": frozenset({"p"})})
    assert asked('@id("a") permit (principal, action, resource);', known) == ["permits everybody everything"]
    project = '@id("a") permit (principal in Project::"q", action == Action::"submit", resource);'
    assert asked(project, known) == ["Project q is not known here; known: p"]
    assert "asks no action" in asked('@id("a") permit (principal, action == Action::"admit", resource);', known)[0]
