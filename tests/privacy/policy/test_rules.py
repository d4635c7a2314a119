"""What Cedar leaves open is closed: errors, unnamed rules, approvals, texts cut short, values that it cannot hold."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import cedarpy
import pytest
from policy_cases import ALICE, ASKED, AUDITOR, FEDERATION, NODE_CONTEXT, OTHERS, QUICKSTART, WARD7, changed
from privet.privacy.errors import PolicyError
from privet.privacy.policy.rules import LARGEST, POLICY_BYTES, Entity, Question, Rules, Verdict

END = "\n// end of policy\n"
EVERYTHING = Rules(f'@id("everything") permit (principal, action, resource);{END}')


def asked(context: Mapping[str, Any], action: str = "admit", who: Entity = ALICE, on: Entity = WARD7) -> Question:
    return Question(who, action, on, context, OTHERS)


def of_node(action: str, **changes: Any) -> Question:
    told = {name.replace("__", "."): value for name, value in changes.items()}
    return asked(changed(NODE_CONTEXT[action], told), action, on=QUICKSTART if action == "runApp" else WARD7)


def is_error(question: Question, rules: Rules = EVERYTHING) -> bool:
    """Whether it is a denial that says what could not be evaluated."""
    decision = rules.decide(question)
    assert decision.is_permitted == (decision.error == ""), decision
    if decision.error:
        assert (decision.verdict, decision.rules) == (Verdict.DENIED, ())
        assert decision.why.startswith("the policy could not be evaluated: ")
    return bool(decision.error)


# ---- a forbid that errs ----

SUM_IN_A_FORBID = f"""
@id("everything") permit (principal, action, resource);
@id("small-sum") forbid (principal, action == Action::"admit", resource)
when {{ context.plan.epsilon + context.account.epsilonAfter > 5000000 }};{END}"""


def test_a_forbid_that_errs_is_a_denial_where_cedar_itself_would_allow() -> None:
    """Cedar skips a policy whose evaluation errs. Of a plan without a claim the sum is beyond a Long."""
    question = of_node("admit", plan__epsilon=LARGEST)
    context, parts = {}, []
    for name, value in question.context.items():
        uid = {"type": name.capitalize(), "id": name}
        context[name] = {"__entity": uid} if isinstance(value, Mapping) else value
        parts += [{"uid": uid, "attrs": dict(value), "parents": []}] if isinstance(value, Mapping) else []
    told = {
        "principal": 'Operator::"alice"',
        "action": 'Action::"admit"',
        "resource": 'Dataset::"ward7"',
        "context": context,
    }
    raw = cedarpy.is_authorized(told, SUM_IN_A_FORBID, [*parts, *(one.as_json() for one in (ALICE, WARD7, *OTHERS))])
    assert (raw.decision, len(raw.diagnostics.errors)) == (cedarpy.Decision.Allow, 1)
    ours = Rules(SUM_IN_A_FORBID).decide(question)
    assert (ours.verdict, ours.rules) == (Verdict.DENIED, ())
    assert "small-sum" in ours.error
    assert "overflow" in ours.error


def test_the_same_forbid_decides_where_it_does_not_err() -> None:
    rules = Rules(SUM_IN_A_FORBID)
    assert rules.decide(of_node("admit")).rules == ("everything",)
    assert rules.decide(of_node("admit", plan__epsilon=4_000_001)).rules == ("small-sum",)


def test_a_permit_that_errs_permits_nothing_even_beside_one_that_does_not() -> None:
    text = '@id("sum") permit (principal, action == Action::"admit", resource) when { context.plan.seed + 1 > 0 };'
    rules = Rules(f'@id("everything") permit (principal, action, resource);{text}{END}')
    assert rules.decide(of_node("admit")).is_permitted
    assert is_error(of_node("admit", plan__seed=LARGEST), rules)


# ---- questions that are none ----


def terms() -> Iterator[tuple[str, str]]:
    """Every term of every action at a node: `plan.epsilon`, `approvals`."""
    for action, context in NODE_CONTEXT.items():
        for part, value in context.items():
            yield action, part
            if isinstance(value, Mapping):
                yield from ((action, f"{part}.{name}") for name in value)


def test_no_question_without_all_of_its_terms() -> None:
    assert not any(is_error(of_node(action)) for action in NODE_CONTEXT)
    for action, term in terms():
        context = changed(NODE_CONTEXT[action], {})
        part, _, name = term.rpartition(".")
        del (context[part] if part else context)[name]  # type: ignore[attr-defined]
        assert is_error(asked(context, action, on=QUICKSTART if action == "runApp" else WARD7)), (action, term)


@pytest.mark.parametrize("odd", [None, 1.5, {"a": 1}, [[1]], "text", b"bytes", {1}, True, 7, 2**63, -(2**63) - 1, 1e30])
def test_no_term_of_another_type(odd: object) -> None:
    for action, term in terms():
        value = value_of(action, term)
        is_another = type(odd) is not type(value) or odd == [[1]] or (type(odd) is int and abs(odd) > 2**62)
        if is_another and not (isinstance(value, Mapping) and isinstance(odd, Mapping)):
            question = of_node(action, **{term.replace(".", "__"): odd})
            assert is_error(question), (action, term, odd)


def value_of(action: str, term: str) -> Any:
    part, _, name = term.rpartition(".")
    context = NODE_CONTEXT[action]
    return context[part][name] if part else context[name]


@pytest.mark.parametrize("largest", [LARGEST, -LARGEST - 1])
def test_numbers_reach_to_the_end_of_a_long(largest: int) -> None:
    assert not is_error(of_node("train", round=largest))


def test_no_action_that_the_schema_lacks() -> None:
    for action in ("teleport", "", "Admit", 'admit", resource', "participate", "submit"):
        assert is_error(asked(NODE_CONTEXT["admit"], action)), action


def test_nobody_but_whom_the_schema_lets_ask() -> None:
    assert is_error(asked(NODE_CONTEXT["admit"], who=AUDITOR))
    assert is_error(asked(NODE_CONTEXT["admit"], on=FEDERATION))
    assert is_error(asked(NODE_CONTEXT["admit"], who=Entity(("Stranger", "eve"))))
    assert is_error(asked(NODE_CONTEXT["admit"], who=Entity(("Operator", "alice"), {"key": "k"})))  # isPinned
    assert is_error(asked(NODE_CONTEXT["admit"], who=Entity(("Operator", "alice"), {"key": 7, "isPinned": True})))
    assert is_error(asked(ASKED, "watch", on=Entity(("Run", "r"), {"state": "running"})))


@pytest.mark.parametrize("name", ["alice", "a" * 10_000, 'a" || true', "\n", "\0", "é𝄞"])
def test_a_name_is_a_name_and_nothing_else(name: str) -> None:
    only = Rules(f'@id("alice") permit (principal == Operator::"alice", action, resource);{END}')
    who = Entity(("Operator", name), dict(ALICE.attributes))
    assert only.decide(asked(NODE_CONTEXT["admit"], who=who)).is_permitted == (name == "alice")


def test_texts_that_utf_8_lacks_are_a_denial() -> None:
    for term in ("plan__name", "plan__project"):
        decision = EVERYTHING.decide(of_node("admit", **{term: "\ud800"}))
        assert decision.error or decision.is_permitted  # whatever Cedar makes of it, it does not end the process


# ---- verdicts ----

STEWARD = """
@id("everything") permit (principal, action, resource);
@id("needs-steward") @approval("data-steward") forbid (principal, action == Action::"admit", resource)
when { context.plan.epsilon > 1000000 } unless { context.approvals.contains("data-steward") };
@id("needs-board") @approval("board") forbid (principal, action == Action::"admit", resource)
when { context.plan.epsilon > 2000000 } unless { context.approvals.contains("board") };
@id("never") forbid (principal, action == Action::"admit", resource) when { context.plan.epsilon > 5000000 };
// end of policy
"""


@pytest.mark.parametrize(
    ("epsilon", "approvals", "verdict", "decided_by", "roles"),
    [
        (1.0, [], Verdict.PERMITTED, ("everything",), ()),
        (1.5, [], Verdict.PENDING, ("needs-steward",), ("data-steward",)),
        (1.5, ["data-steward"], Verdict.PERMITTED, ("everything",), ()),
        (1.5, ["Data-Steward", "board"], Verdict.PENDING, ("needs-steward",), ("data-steward",)),
        (3.0, [], Verdict.PENDING, ("needs-board", "needs-steward"), ("board", "data-steward")),
        (3.0, ["data-steward"], Verdict.PENDING, ("needs-board",), ("board",)),
        (3.0, ["board", "data-steward"], Verdict.PERMITTED, ("everything",), ()),
        (6.0, [], Verdict.DENIED, ("needs-board", "needs-steward", "never"), ()),
        (6.0, ["board", "data-steward"], Verdict.DENIED, ("never",), ()),
    ],
)
def test_denial_waits_for_a_person_only_where_all_that_forbid_do(
    epsilon: float, approvals: list[str], verdict: Verdict, decided_by: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    decision = Rules(STEWARD).decide(of_node("admit", plan__epsilon=int(epsilon * 1e6), approvals=approvals))
    assert (decision.verdict, decision.rules, decision.approvals) == (verdict, decided_by, roles)
    assert decision.is_permitted == (verdict is Verdict.PERMITTED)


def test_approval_permits_nothing_by_itself() -> None:
    """A person may lift a forbid; where no rule permits, the request is denied before and afterwards."""
    rules = Rules(STEWARD.replace('@id("everything") permit (principal, action, resource);', ""))
    for said in ([], ["data-steward"]):
        decision = rules.decide(of_node("admit", plan__epsilon=1_500_000, approvals=said))
        assert (decision.verdict, decision.why) == (Verdict.DENIED, "no rule permits it")


def test_attack_operator_whom_no_rule_permits_fills_what_waits_for_a_person() -> None:
    """Nobody is asked about what would be denied whatever they say."""
    permit = '@id("everything") permit (principal, action, resource);'
    of_bob = permit.replace("(principal,", '(principal == Operator::"bob",')
    decision = Rules(STEWARD.replace(permit, of_bob)).decide(of_node("admit", plan__epsilon=1_500_000))
    assert (decision.verdict, decision.rules, decision.approvals) == (Verdict.DENIED, (), ())


def test_forbid_that_no_approval_lifts_is_named_and_asks_nobody() -> None:
    stubborn = """
@id("stubborn") @approval("board") forbid (principal, action == Action::"admit", resource)
when { context.plan.epsilon > 1000000 };
"""
    decision = Rules(stubborn + STEWARD).decide(of_node("admit", plan__epsilon=1_500_000))
    assert (decision.verdict, decision.rules) == (Verdict.DENIED, ("stubborn",))


def test_permit_that_rests_on_an_approval_waits_for_it() -> None:
    permit = '@id("everything") permit (principal, action, resource);'
    asked = permit.replace("action,", 'action in Action::"participate",')
    if_approved = asked.replace(";", ' when { context.approvals.contains("data-steward") };')
    decision = Rules(STEWARD.replace(permit, if_approved)).decide(of_node("admit", plan__epsilon=1_500_000))
    assert (decision.verdict, decision.approvals) == (Verdict.PENDING, ("data-steward",))


def test_why_says_the_decision_in_words() -> None:
    rules = Rules(STEWARD)
    told = [rules.decide(of_node("admit", plan__epsilon=int(epsilon * 1e6))).why for epsilon in (1, 1.5, 6)]
    assert told == [
        "permitted by rule everything",
        "rule needs-steward asks for the approval of data-steward",
        "forbidden by rule needs-board, needs-steward, never",
    ]
    assert Rules(END).decide(of_node("admit")).why == "no rule permits it"


def test_hash_is_of_the_text_and_stands_in_every_decision() -> None:
    other = Rules(STEWARD + "// end of policy")
    assert other.hash != Rules(STEWARD).hash
    assert other.decide(of_node("admit")).policy == other.hash
    assert re.fullmatch("[0-9a-f]{64}", other.hash)


# ---- texts that are no policy ----


ANYTHING = "permit (principal, action, resource)"
ADMISSION = 'permit (principal, action == Action::"admit", resource)'


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (f"{ANYTHING};", "needs an @id"),
        (f'@id("") {ANYTHING};', "needs an @id"),
        (f'@id("A") {ANYTHING};', "needs an @id"),
        (f'@id("a b") {ANYTHING};', "needs an @id"),
        (f'@id("a") {ANYTHING}; @id("a") {ANYTHING};', "already"),
        ('@id("a") permit (principal == ?principal, action, resource);', "template"),
        ('@id("a") @approval("x y") forbid (principal, action, resource);', "needs a role"),
        ('@id("a") @approval forbid (principal, action, resource);', "needs a role"),
        (f'@id("a") @approval("board") {ANYTHING};', "means nothing with a permit"),
        (f'@id("a") {ANYTHING}', "line 1"),
        (f'@id("a") {ANYTHING} when {{ context.plan.epsilon > 1', "line 1"),
        ('@id("a") permit (principal, action == Action::"fly", resource);', "no action fly"),
        ('@id("a") permit (principal is Doctor, action, resource);', "no type Doctor"),
        (f'@id("a") {ADMISSION} when {{ context.plan.eps > 1 }};', "eps"),
        (f'@id("a") {ADMISSION} when {{ context.plan.epsilon > 1.5 }};', "rule a"),
        (f'@id("a") {ADMISSION} when {{ context.plan.epsilon > "1" }};', "rule a"),
        (f'@id("a") {ADMISSION} when {{ context.plan.epsilon }};', "rule a"),
        (f'@id("a") {ADMISSION} when {{ context.cohort.parties > 4 }};', "cohort"),
    ],
)
def test_text_that_is_no_policy(rules: str, told: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Rules(f"{rules}{END}")
    assert told in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "\n", f'@id("a") {ANYTHING};', f'{END}@id("a") {ANYTHING};', END.strip()[:-1]])
def test_text_without_its_last_line_was_cut_short(text: str) -> None:
    with pytest.raises(PolicyError, match="cut short"):
        Rules(text)


def test_policy_of_more_bytes_than_any() -> None:
    with pytest.raises(PolicyError, match="allowed are"):
        Rules.of_bytes(b" " * POLICY_BYTES + END.encode())
    with pytest.raises(PolicyError, match="not UTF-8"):
        Rules.of_bytes(b"\xff" + END.encode())


def test_problems_of_all_rules_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        Rules(f"permit (principal, action, resource);permit (principal, action, resource);{END}")
    assert len(caught.value.problems) == 2
