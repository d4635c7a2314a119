"""docs/policies.md: its words are those of the schema, and each of its policies permits and refuses what it says."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from policy_cases import (
    ALICE,
    ASKED,
    AUDITOR,
    BOB,
    FEDERATION,
    NODE_CONTEXT,
    NORTH,
    OTHERS,
    SERVER_CONTEXT,
    WARD7,
    WARD8,
    WITHOUT_CLAIM,
    changed,
    operator,
    run,
)
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import END, LARGEST, Entity, Question, Rules
from privet.privacy.policy.vocabulary import actions, things

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
WORDS, POLICIES = PAGE.split("## Ten policies")
PERMIT = '@id("somebody-permits") permit (principal, action, resource);\n'
TEN = 10

KIDNEY = ("Project", "kidney")
ALICES_KEY = re.findall(r'principal.key == "([0-9a-f]{64})"', POLICIES)[0]
ALICE_KNOWN, SAM = operator("alice", ALICES_KEY), operator("sam")
CAROL = operator("carol", "c" * 64, True, KIDNEY)
OF_KIDNEY, OF_ALICE = run("north", project=KIDNEY), run("north")
OF_SAM = Entity(("Run", "sams"), {**OF_ALICE.attributes, "operator": {"__entity": {"type": "Operator", "id": "sam"}}})
KIDNEYS = {"plan.project": "kidney"}
FIVE = {"plan.minNodes": 5}
EVENING, NIGHT = {"time.hour": 17, "time.minute": 59}, {"time.hour": 18, "time.minute": 0}

# Of each policy: who asks for what, on which terms, and the rules that forbid it ("" where none permits it).
Asked = tuple[Entity, str, Entity, Mapping[str, Any], str | None]
PERMITTED = None
CASES: dict[int, list[Asked]] = {
    1: [
        (ALICE_KNOWN, "admit", WARD7, {}, PERMITTED),
        (ALICE_KNOWN, "releaseUpdate", WARD7, {}, PERMITTED),
        (ALICE, "admit", WARD7, {}, ""),  # her name, another key
        (operator("bob", ALICES_KEY), "admit", WARD7, {}, ""),
        (ALICE_KNOWN, "admit", WARD8, {}, ""),
        (ALICE_KNOWN, "admit", WARD7, {"plan.task": "hearts"}, ""),
    ],
    2: [
        (ALICE, "admit", WARD7, {**KIDNEYS, "account.epsilonOfProject": 3_000_000}, PERMITTED),
        (ALICE, "admit", WARD7, {**KIDNEYS, "account.epsilonOfProject": 3_000_001}, "kidney-study-epsilon-3"),
        (ALICE, "admit", WARD7, {"plan.project": "lung"}, "kidney-study-epsilon-3"),
        (ALICE, "admit", WARD7, {}, "kidney-study-epsilon-3"),
        (ALICE, "train", WARD7, {**KIDNEYS, "account.epsilonOfProject": 3_000_001}, PERMITTED),
    ],
    3: [
        (ALICE, "admit", WARD7, {"plan.noiseMultiplier": 800_000}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.evaluationNoise": LARGEST}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.noiseMultiplier": 799_999}, "noise-at-least-0.8"),
        (ALICE, "train", WARD7, {"plan.evaluationNoise": 799_999}, "noise-at-least-0.8"),
        (ALICE, "admit", WARD7, WITHOUT_CLAIM, "noise-at-least-0.8"),
    ],
    4: [
        (ALICE, "admit", WARD7, FIVE, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.minNodes": 4}, "five-in-the-plan"),
        (ALICE, "train", WARD7, FIVE, PERMITTED),
        (ALICE, "train", WARD7, {"cohort.parties": 4}, "five-that-we-know"),
        (ALICE, "releaseUpdate", WARD7, {"cohort.told": 9, "cohort.parties": 1}, "five-that-we-know"),
        (ALICE, "train", WARD7, {"cohort.parties": 9, "cohort.arePinned": False}, "five-that-we-know"),
    ],
    5: [
        (ALICE, "admit", WARD7, {"plan.mechanism": "distributed", "plan.secureAggregation": True}, PERMITTED),
        (ALICE, "admit", WARD7, {}, "server-sees-the-sum-alone"),
        (ALICE, "releaseUpdate", WARD7, {}, "server-sees-the-sum-alone"),
    ],
    6: [
        (ALICE, "train", WARD7, EVENING, PERMITTED),
        (ALICE, "admit", WARD7, {"time.hour": 8}, PERMITTED),
        (ALICE, "train", WARD7, NIGHT, "working-hours"),
        (ALICE, "admit", WARD7, {"time.hour": 7}, "working-hours"),
        (ALICE, "evaluate", WARD7, {"time.weekday": "saturday"}, "working-hours"),
        (ALICE, "releaseUpdate", WARD7, NIGHT, PERMITTED),
        (ALICE, "admit", WARD7, {"time.date": 20270630}, PERMITTED),
        (ALICE, "admit", WARD7, {"time.date": 20270701}, "until-june-2027"),
        (ALICE, "releaseUpdate", WARD7, {"time.date": 20280101}, "until-june-2027"),
    ],
    7: [
        (ALICE, "admit", WARD7, {"plan.epsilon": 1_000_000}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.epsilon": 2_000_000, "approvals": ["data-steward"]}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.epsilon": 1_000_001}, "needs-steward"),
        (ALICE, "admit", WARD7, {"plan.epsilon": 2_000_000, "approvals": ["board"]}, "needs-steward"),
    ],
    8: [
        (ALICE, "admit", WARD7, {}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.metrics": []}, PERMITTED),
        (ALICE, "admit", WARD7, {"plan.metrics": ["accuracy", "recall"]}, "accuracy-alone"),
        (ALICE, "releaseMetric", WARD7, {"plan.evaluations": 5}, PERMITTED),
        (ALICE, "releaseMetric", WARD7, {"plan.evaluations": 6}, "few-metrics"),
        (ALICE, "releaseUpdate", WARD7, {"plan.evaluations": 6}, PERMITTED),
    ],
    9: [
        (CAROL, "submit", OF_KIDNEY, {}, PERMITTED),
        (CAROL, "submit", OF_ALICE, {}, "every-run-is-of-a-project"),
        (BOB, "submitApp", OF_ALICE, {}, "every-run-is-of-a-project"),
        (CAROL, "watch", OF_KIDNEY, {}, PERMITTED),
        (BOB, "watch", OF_KIDNEY, {}, "a-study-is-seen-by-its-own"),
        (AUDITOR, "watch", OF_KIDNEY, {}, PERMITTED),
        (AUDITOR, "readLedger", NORTH, {}, PERMITTED),
        (AUDITOR, "renew", FEDERATION, {}, PERMITTED),
        (AUDITOR, "stop", OF_KIDNEY, {}, "auditors-only-read"),
        (AUDITOR, "takeModel", OF_ALICE, {}, "auditors-only-read"),
    ],
    10: [
        (SAM, "submit", OF_SAM, {"plan.epsilon": 500_000, "plan.rounds": 20}, PERMITTED),
        (SAM, "submit", OF_SAM, {"plan.epsilon": 500_001}, "student-submits-small-plans"),
        (SAM, "submit", OF_SAM, {"plan.epsilon": 500_000, "plan.rounds": 21}, "student-submits-small-plans"),
        (BOB, "submit", OF_ALICE, {}, PERMITTED),
        (SAM, "submitApp", OF_SAM, {}, "student-runs-no-apps"),
        (SAM, "stop", OF_SAM, {}, PERMITTED),
        (SAM, "stop", OF_ALICE, {}, "student-steers-his-own"),
        (SAM, "takeModel", OF_ALICE, {}, "student-steers-his-own"),
        (BOB, "stop", OF_ALICE, {}, PERMITTED),
    ],
}
AT_THE_SERVER = {9, 10}


def policies() -> dict[int, str]:
    """The Cedar text of each policy, by its number."""
    found = re.findall(r"^### (\d+)\. [^\n]+\n\n\*[^\n]+\?\*\n\n```cedar\n(.*?)```\n\n\S", POLICIES, re.M | re.S)
    return {int(number): text for number, text in found}


def with_end(text: str) -> str:
    return text if text.rstrip().endswith(END) else f"{text}\n{END}\n"


def test_every_block_is_one_of_ten_policies_with_its_question_and_what_happens() -> None:
    assert sorted(policies()) == sorted(CASES) == list(range(1, TEN + 1))
    assert PAGE.count("```cedar") == TEN
    ids = [rule.id for text in policies().values() for rule in Rules(with_end(text)).rules]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("number", CASES)
def test_policy_is_valid_beside_the_one_that_ships(number: int) -> None:
    shipped = default_policy("server" if number in AT_THE_SERVER else "node")
    together = Rules(policies()[number] + shipped)
    assert len(together.rules) == len(Rules(shipped).rules) + len(Rules(with_end(policies()[number])).rules)


@pytest.mark.parametrize("number", CASES)
def test_policy_permits_and_refuses_what_it_says(number: int) -> None:
    text = policies()[number]
    permit = "" if number == 1 else PERMIT
    rules = Rules(with_end(permit + text))
    contexts, told = (SERVER_CONTEXT if number in AT_THE_SERVER else NODE_CONTEXT), set[str]()
    for who, action, on, changes, refused_by in CASES[number]:
        context = changed(contexts.get(action, ASKED), changes)
        decision = rules.decide(Question(who, action, on, context, OTHERS))
        assert decision.error == ""
        assert decision.is_permitted == (refused_by is PERMITTED), (who.uid, action, changes, decision)
        if refused_by is not PERMITTED:
            assert decision.rules == tuple(filter(None, [refused_by])), (who.uid, action, changes)
        told |= set(decision.rules)
    assert told >= {rule.id for rule in Rules(with_end(text)).rules}  # each rule decides a case


def test_policy_that_asks_a_steward_makes_a_request_wait() -> None:
    rules = Rules(with_end(PERMIT + policies()[7]))
    context = changed(NODE_CONTEXT["admit"], {"plan.epsilon": 2_000_000})
    decision = rules.decide(Question(ALICE, "admit", WARD7, context, OTHERS))
    assert (decision.verdict.value, decision.approvals) == ("pending", ("data-steward",))


# ---- the words ----


def spoken_of() -> set[str]:
    """Every word in the first column of a table, however it is led in."""
    cells = re.findall(r"^\| (`[^|]+`) \|", WORDS, re.M)
    return {re.split(r"[ .]", word)[-1] for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def terms() -> Iterator[str]:
    """Every attribute that the schema has, but a group's own."""
    for thing, attributes in things().items():
        if thing not in ("Time", "Transport"):
            yield from attributes
    for asked in actions().values():
        yield from asked.context - {"plan", "account", "cohort"}


def test_page_speaks_of_every_attribute_of_the_schema() -> None:
    assert {*terms()} <= spoken_of()
    for part in ("Time", "Transport"):
        (row,) = re.findall(rf"^\| `context\.{part.lower()}` \|(.*)\|$", WORDS, re.M)
        assert set(things()[part]) <= set(re.findall(r"`(\w+)`", row))


def test_page_speaks_of_no_word_that_the_schema_lacks() -> None:
    for part in ("plan", "account", "cohort"):
        (table,) = re.findall(rf"`context\.{part}`, of .*?\n\n\| word \| is \|\n\|---\|---\|\n(.*?)\n\n", WORDS, re.S)
        words = {word for row in table.splitlines() for word in re.findall(r"`(\w+)`", row.split(" | ")[0])}
        assert words == set(things()[part.capitalize()]), part


def test_page_speaks_of_every_action_and_no_other() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \| (?:Operator|Node|anybody) \| \w+ \|$", WORDS, re.M)
    assert {word for cell in rows for word in re.findall(r"\w+", cell)} == set(actions())
