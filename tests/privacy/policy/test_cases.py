"""What the policies that ship decide, case by case; and that no rule of them could be other than it is unnoticed."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from policy_cases import ALICE, AUDITOR, CASES, FEDERATION, NODE_CASES, PERMITS, RUN, SERVER_CASES, Case
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import Rule, Rules, Verdict

FEWEST = 60
RULES = {"node": Rules(PERMITS + default_policy("node")), "server": Rules(default_policy("server"))}
OF_TESTS = frozenset(rule.id for rule in Rules(f"{PERMITS}// end of policy").rules)
# The schema lets nobody but a node ask for these, and a run's members are nodes: a wider scope changes nothing.
EQUIVALENT = {
    "node": set[str](),
    "server": {
        "nodes-connect: principal {'op': 'All'}",
        "nodes-join-runs: principal {'op': 'All'}",
        "nodes-take-models-they-trained: principal {'op': 'All'}",
    },
}
_COMPARISONS = {"<=", "<", ">=", ">", "==", "!="}
_OTHER_CLAUSE = {"when": "unless", "unless": "when"}


def holds(case: Case, rules: Rules) -> bool:
    """Whether that is decided, by these rules, and nothing errs."""
    decision = rules.decide(case.question)
    return (decision.verdict, decision.rules, decision.error) == (case.verdict, tuple(sorted(case.rules)), "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_default_policies_decide(case: Case) -> None:
    assert holds(case, RULES[case.side])


def test_table_is_large_enough_and_asks_nothing_twice() -> None:
    assert len(CASES) >= FEWEST
    titles = [case.title for case in CASES]
    assert [title for title in titles if titles.count(title) > 1] == []
    decided = {name for case in CASES for name in case.rules}
    assert decided == {rule.id for rules in RULES.values() for rule in rules.rules}


# ---- mutants: each is made from the rule's own JSON form ----

Form = Mapping[str, Any]


def changed_forms(form: Form) -> Iterator[tuple[str, Form]]:
    """Every rule that differs from this one in one place, and in what way."""
    effect = "permit" if form["effect"] == "forbid" else "forbid"
    yield f"effect {effect}", {**form, "effect": effect}
    for place, clause in enumerate(form["conditions"]):
        before, after = form["conditions"][:place], form["conditions"][place + 1 :]
        yield f"without condition {place}", {**form, "conditions": [*before, *after]}
        turned = {**clause, "kind": _OTHER_CLAUSE[clause["kind"]]}
        yield f"{turned['kind']} in condition {place}", {**form, "conditions": [*before, turned, *after]}
    for moved in moved_constants(form["conditions"]):
        yield "another constant", {**form, "conditions": moved}
    for part in ("principal", "action", "resource"):
        for scope in wider_or_narrower(form[part]):
            yield f"{part} {scope}", {**form, part: scope}


def moved_constants(conditions: Sequence[Form]) -> Iterator[Sequence[Form]]:
    """The conditions with each number that is compared moved by one unit, down and up."""
    for path in numbers_in(conditions, ()):
        for step in (-1, 1):
            moved = copy.deepcopy(conditions)
            target: Any = moved
            for key in path:
                target = target[key]
            target["Value"] += step
            yield moved


def numbers_in(told: Any, path: tuple[Any, ...], is_compared: bool = False) -> Iterator[tuple[Any, ...]]:
    if isinstance(told, Mapping):
        if is_compared and type(told.get("Value")) is int:
            yield path
        for key, inner in told.items():
            yield from numbers_in(inner, (*path, key), is_compared or key in _COMPARISONS)
    elif isinstance(told, list):
        for place, inner in enumerate(told):
            yield from numbers_in(inner, (*path, place), is_compared)


def wider_or_narrower(scope: Form) -> Iterator[Form]:
    """The scope without its bound; and with each one less of several that it names."""
    if scope["op"] != "All":
        yield {"op": "All"}
    named = scope.get("entities", [])
    for place in range(len(named)):
        yield {**scope, "entities": [*named[:place], *named[place + 1 :]]}


def mutants(side: str) -> Iterator[tuple[str, Rules]]:
    """The policy that ships with one rule less, or one rule changed. The permit of the tests stays as it is."""
    rules = RULES[side].rules
    for place, rule in enumerate(rules):
        if rule.id in OF_TESTS:
            continue
        before, after = rules[:place], rules[place + 1 :]
        yield f"{rule.id}: removed", Rules.imagined([*before, *after])
        for what, form in changed_forms(rule.form):
            changed: Rule = replace(rule, form=form, effect=form["effect"])
            yield f"{rule.id}: {what}", Rules.imagined([*before, changed, *after])


@pytest.mark.parametrize(
    ("side", "cases", "fewest"), [("node", NODE_CASES, 20), ("server", SERVER_CASES, 40)], ids=["node", "server"]
)
def test_every_changed_rule_fails_a_case(side: str, cases: Sequence[Case], fewest: int) -> None:
    made = list(mutants(side))
    assert len(made) >= fewest
    unnoticed = {what for what, rules in made if all(holds(case, rules) for case in cases)}
    assert unnoticed == EQUIVALENT[side]


def test_schema_lets_nobody_but_a_node_connect_or_join_a_run() -> None:
    """Whatever the rules say: what is equivalent above is so by the schema."""
    everything = Rules('@id("all") permit (principal, action, resource);\n// end of policy')
    for who in (ALICE, AUDITOR):
        for action, on in (("connect", FEDERATION), ("joinRun", RUN)):
            decision = everything.decide(Case("server", who, action, on, {}, Verdict.DENIED, ()).question)
            assert (decision.verdict, bool(decision.error)) == (Verdict.DENIED, True)


def test_rules_that_are_imagined_unchanged_decide_alike() -> None:
    """Or every mutant would be noticed for nothing."""
    for side, cases in (("node", NODE_CASES), ("server", SERVER_CASES)):
        same = Rules.imagined(RULES[side].rules)
        assert all(holds(case, same) for case in cases)


def test_numbers_that_are_compared_are_found() -> None:
    (worth,) = [rule for rule in RULES["node"].rules if rule.id == "a-claim-worth-the-name"]
    assert len(list(moved_constants(worth.form["conditions"]))) == 4
