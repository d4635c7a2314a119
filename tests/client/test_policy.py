"""What the node shows its policy, what it enters of the decision, and what the operator is told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from open_policy import EVERYTHING
from privet.client.app import reason_of
from privet.client.policy import hour_that_decides
from privet.client.settings import NodeSettings, PolicySection
from privet.privacy.budget.decisions import DeniedError
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.policy.rules import Rules
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from signed_house import ALICE, AUTHORITY, OTHER, House, asked

Make = Callable[..., Submission]
END = "\n// end of policy\n"
PERMIT = '@id("all") permit (principal, action, resource);'
STEWARD = """
@id("needs-steward") @approval("data-steward") forbid (principal, action == Action::"admit", resource)
unless { context.approvals.contains("data-steward") };
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def signed(make_submission: Make) -> SignedSubmission:
    return ALICE.signs(make_submission(private=True))


def facts(house: House, place: int = -1) -> Any:
    return json.loads(house.decisions[place]["facts"])


def denial(house: House, signed: SignedSubmission, number: int = 1) -> DeniedError:
    refused = house.refused(asked(signed, number))
    assert isinstance(refused, DeniedError)
    return refused


def test_decisions_stand_before_what_they_permit(house: House, signed: SignedSubmission) -> None:
    house.node.answer(asked(signed))
    kinds = [entry.kind for entry in house.all_entries]
    assert kinds == ["policy", "decision", "operator", "charge", "decision", "begin", "decision", "answer"]
    assert [said["action"] for said in house.decisions] == ["admit", "train", "releaseUpdate"]
    assert {said["verdict"] for said in house.decisions} == {"permitted"}
    assert house.decisions[0]["resource"] == "Dataset::synthetic"


def test_text_of_a_policy_is_entered_once_before_its_first_decision(house: House, signed: SignedSubmission) -> None:
    house.node.answer(asked(signed))
    house.start()
    house.node.answer(asked(signed, 2))
    house.policy.write_text(f"{PERMIT}{END}")
    house.node.answer(asked(signed, 3))
    texts = [entry.content for entry in house.all_entries if entry.kind == "policy"]
    assert [text["text"] for text in texts] == [EVERYTHING, f"{PERMIT}{END}"]
    assert all(Rules(text["text"]).hash == text["hash"] for text in texts)
    assert {said["policy"] for said in house.decisions[-2:]} == {texts[1]["hash"]}


def test_facts_are_whole_at_the_admission_and_then_only_what_has_changed(
    house: House, signed: SignedSubmission
) -> None:
    house.node.answer(asked(signed))
    first = facts(house, 0)
    assert first["principal"] == {"key": ALICE.key.fingerprint, "isPinned": False}
    assert first["resource"] == {"account": "records", "declaredSize": 1000, "within": ["Task::synthetic"]}
    assert first["context"]["plan"]["epsilon"] == 1_664_633
    house.moment += timedelta(hours=1)
    house.node.answer(asked(signed, 2))
    assert facts(house)["context"].keys() == {"cohort", "round", "attempt", "time"}
    assert (facts(house)["principal"], facts(house)["resource"]) == ({}, {})


def test_account_counts_this_run_before_and_after_it_is_charged(house: House, make_submission: Make) -> None:
    epsilon = 1_664_633
    house.node.answer(asked(ALICE.signs(make_submission("run.project=kidney", private=True))))
    account = facts(house, 0)["context"]["account"]
    sums = ("epsilonAfter", "epsilonOfOperator", "epsilonOfProject")
    assert all(account[name] in range(epsilon - 100, epsilon + 1) for name in sums)
    assert "account" not in facts(house, 1)["context"]  # charged, it is the same
    second = make_submission("run.project=lung", private=True, run_id="run-2")
    house.node.answer(asked(ALICE.signs(second)))
    after = facts(house, 3)["context"]["account"]
    assert after["epsilonAfter"] == after["epsilonOfOperator"] == 2 * account["epsilonAfter"]
    assert after["epsilonOfProject"] == account["epsilonAfter"]
    assert after["deltaAfter"] == 20_000_000


def test_limit_on_an_operators_sum_holds_over_runs(house: House, make_submission: Make) -> None:
    limit = """
        @id("sum") forbid (principal, action == Action::"admit", resource)
        unless { context.account.epsilonOfOperator <= 3400000 };"""
    house.policy.write_text(f"{PERMIT}{limit}{END}")
    for number in (1, 2):
        house.node.answer(asked(ALICE.signs(make_submission(private=True, run_id=f"run-{number}"))))
    third = ALICE.signs(make_submission(private=True, run_id="run-3"))
    assert denial(house, third).message == "admit: forbidden by rule sum"
    house.node.answer(asked(ALICE.signs(make_submission(private=True, run_id="run-2")), 2))


def test_limit_on_an_operators_sum_holds_over_a_restored_ledger(
    house: House, make_submission: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    limit = """
        @id("sum") forbid (principal, action == Action::"admit", resource)
        unless { context.account.epsilonOfOperator <= 2000000 };"""
    house.policy.write_text(f"{PERMIT}{limit}{END}")
    lost = House(tmp_path_factory.mktemp("lost"))
    lost.node.answer(asked(ALICE.signs(make_submission(private=True))))
    charged = next(entry.content for entry in lost.all_entries if entry.kind == "charge")
    with house.accounts.transaction():
        house.accounts.ledger.append("recovered-charge", charged)
    second = ALICE.signs(make_submission(private=True, run_id="run-2"))
    assert denial(house, second).message == "admit: forbidden by rule sum"


def test_pin_is_of_name_and_key(house: House, signed: SignedSubmission) -> None:
    house.pins = {"tester": ALICE.key.fingerprint}
    house.node.answer(asked(signed))
    assert facts(house, 0)["principal"]["isPinned"] is True
    house.pins = {"tester": OTHER.key.fingerprint}
    house.node.answer(asked(signed, 2))
    assert facts(house)["principal"] == {"isPinned": False}


def test_certificates_age_is_that_of_the_admission(house: House, signed: SignedSubmission) -> None:
    house.moment += timedelta(hours=5)
    house.node.answer(asked(signed))
    house.moment += timedelta(hours=40)
    house.node.answer(asked(signed, 2))
    assert facts(house, 0)["context"]["transport"] == {"tls": 13, "certificateAgeHours": 5}
    assert "transport" not in facts(house)["context"]


def test_policy_is_asked_before_the_account(house: House, make_submission: Make) -> None:
    """Who is denied learns nothing of what is left."""
    house.policy.write_text(END)
    unaffordable = ALICE.signs(make_submission("privacy.delta=0.01", private=True))
    assert denial(house, unaffordable).code is Refusal.POLICY_DENIED


def test_what_the_account_refuses_leaves_no_permission(house: House, make_submission: Make) -> None:
    unaffordable = ALICE.signs(make_submission("privacy.delta=0.01", private=True))
    with pytest.raises(RefusedError, match="not below 1 / declared size"):
        house.node.answer(asked(unaffordable))
    assert [entry.kind for entry in house.all_entries] == ["refused"]


# ---- what is told ----


@pytest.mark.parametrize(
    ("disclose", "told"),
    [
        ("none", "policy-denied"),
        ("rule", "policy-denied: never"),
        ("full", "policy-denied: forbidden by rule never"),
    ],
)
def test_institution_chooses_what_is_told(house: House, signed: SignedSubmission, disclose: Any, told: str) -> None:
    house.policy.write_text(f'{PERMIT}@id("never") forbid (principal, action, resource);{END}')
    house.settings = NodeSettings(policy=PolicySection(disclose=disclose))
    assert reason_of(denial(house, signed)) == told


def test_nothing_is_told_of_a_rule_where_none_decided(house: House, signed: SignedSubmission) -> None:
    house.policy.write_text(END)
    assert reason_of(denial(house, signed)) == "policy-denied"


def test_what_is_told_has_an_end(house: House, signed: SignedSubmission) -> None:
    many = "".join(f'@id("{"x" * 55}{number}") forbid (principal, action, resource);' for number in range(50))
    house.policy.write_text(f"{many}{END}")
    assert len(reason_of(denial(house, signed))) < 350


# ---- approval ----


def say(house: House, submission: Submission, verdict: str) -> None:
    body = {"run": submission.run_id, "submission": submission.hash, "role": "data-steward", "verdict": verdict}
    with house.accounts.transaction():
        house.accounts.ledger.append("approval", body | {"because": "vote 12"})


def test_request_waits_for_a_person_and_goes_on_when_that_person_has_approved(
    house: House, make_submission: Make
) -> None:
    house.policy.write_text(f"{PERMIT}{STEWARD}{END}")
    submission = make_submission(private=True)
    signed = ALICE.signs(submission)
    refused = denial(house, signed)
    assert (refused.code, reason_of(refused)) == (Refusal.APPROVAL_PENDING, "approval-pending: needs-steward")
    (said,) = house.decisions
    assert (said["verdict"], said["approvals"]) == ("pending", "data-steward")
    assert said["plan"].encode() == submission.canonical
    say(house, submission, "approved")
    house.node.answer(asked(signed))
    assert house.kinds == ["refused", "approval", "operator", "charge", "begin", "answer"]
    assert facts(house, 1)["context"]["approvals"] == ["data-steward"]


def test_request_that_a_person_refused_is_refused(house: House, make_submission: Make) -> None:
    house.policy.write_text(f"{PERMIT}{STEWARD}{END}")
    submission = make_submission(private=True)
    denial(house, ALICE.signs(submission))
    say(house, submission, "refused")
    assert denial(house, ALICE.signs(submission)).code is Refusal.APPROVAL_REFUSED


def test_approval_is_of_one_submission(house: House, make_submission: Make) -> None:
    house.policy.write_text(f"{PERMIT}{STEWARD}{END}")
    submission = make_submission(private=True)
    denial(house, ALICE.signs(submission))
    say(house, submission, "approved")
    other = make_submission("run.seed=9", private=True)  # the same run, another plan
    assert denial(house, ALICE.signs(other)).code is Refusal.APPROVAL_PENDING


# ---- time ----


@pytest.mark.parametrize(("zone", "hour", "weekday"), [("UTC", 12, "sunday"), ("Pacific/Auckland", 1, "monday")])
def test_time_is_that_of_the_institutions_zone(
    house: House, signed: SignedSubmission, zone: str, hour: int, weekday: str
) -> None:
    house.settings = NodeSettings(policy=PolicySection(**{"time-zone": zone}))  # type: ignore[arg-type]
    house.node.answer(asked(signed))
    told = facts(house, 0)["context"]["time"]
    assert (told["hour"], told["weekday"]) == (hour, weekday)


def test_round_outside_its_hours_waits_for_them_and_spends_nothing(house: House, signed: SignedSubmission) -> None:
    hours = """
        @id("hours") forbid (principal, action in Action::"participate", resource)
        unless { context.time.hour < 13 };"""
    house.settings = NodeSettings(policy=PolicySection(**{"time-zone": "UTC"}))  # type: ignore[arg-type]
    house.policy.write_text(f"{PERMIT}{hours}{END}")
    house.node.answer(asked(signed))
    house.moment += timedelta(hours=1)
    assert denial(house, signed, 2).message == "train: forbidden by rule hours"
    house.moment += timedelta(hours=12)
    house.node.answer(asked(signed, 2))
    assert house.kinds.count("begin") == 2


def test_hour_decides_where_a_rule_speaks_of_time() -> None:
    """So that a server asks again when the hour has come (party.py)."""
    settings = NodeSettings(policy=PolicySection(**{"time-zone": "UTC"}))  # type: ignore[arg-type]
    noon = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)
    later, tomorrow = noon + timedelta(minutes=10), noon + timedelta(hours=1)

    def told(condition: str, now: datetime) -> tuple[object, ...]:
        rule = f'@id("a") permit (principal, action in Action::"participate", resource) when {{ {condition} }};{END}'
        return hour_that_decides(Rules(rule), settings, now)

    assert told("context.plan.rounds > 3", noon) == ()
    assert told("context.time.hour > 3", noon) == told("context.time.hour > 3", later) == (20261122, "sunday", 12)
    assert told("context.time.hour > 3", noon) != told("context.time.hour > 3", tomorrow)
    assert told("context.time.minute > 3", noon) != told("context.time.minute > 3", later)
    assert told(r'context["\u{74}ime"].minute > 3', noon) == (20261122, "sunday", 12, 5)


def test_signature_of_another_day_is_shown_with_the_certificates_age(house: House, make_submission: Make) -> None:
    house.moment += timedelta(hours=30)
    renewed = AUTHORITY.party("tester", key=ALICE.key, at=house.moment - timedelta(hours=3))
    house.node.answer(asked(renewed.signs(make_submission(private=True))))
    assert facts(house, 0)["context"]["transport"]["certificateAgeHours"] == 3
