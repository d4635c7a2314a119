"""Ledgers of a guard that was 'broken': entries rightly chained, signed with the institution's own key, and wrong."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ledgers import NO_CLAIM, Institution, done
from privet.privacy.audit.recomputed import LowerEstimate
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.accounting import ACCOUNTANT, epsilon_of, rounded_up
from privet.privacy.budget.charge import charged_events
from privet.privacy.budget.events import RELATION, SampledGaussian
from privet.privacy.submission import Submission


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Institution]:
    made = Institution(tmp_path)
    made.open()
    yield made
    made.ledger.close()


def charge_body(submission: Submission, /, **changed: Any) -> dict[str, Any]:
    """What an honest guard would write for account `ward`."""
    plan, claim = submission.plan, submission.claim
    assert claim is not None
    assert plan.privacy.delta is not None
    events = charged_events(plan, claim.noise_multiplier)
    return {
        "run": submission.run_id,
        "submission": submission.hash,
        "plan": submission.canonical.decode(),
        "dataset": "ward",
        "declared_size": "1000",
        "account": "ward",
        "unit": "record",
        "epsilon": str(rounded_up(epsilon_of(events, plan.privacy.delta))),
        "delta": str(Decimal(repr(plan.privacy.delta))),
        "divergence": "0",
        "expires": submission.body.expires,
        "events": [event.as_json() for event in events],
        "relation": RELATION,
        "accountant": ACCOUNTANT,
    } | changed


def found(house: Institution, checks: tuple[LowerEstimate, ...] = ()) -> set[tuple[int | None, str]]:
    audit = audit_ledger(house.path, public_key=house.key.public, checks=checks)
    return {(violation.entry, violation.code) for violation in audit.violations}


def forge_charge(house: Institution, run: str = "run-1", noise: float = 12.0, **changed: Any) -> int:
    return house.forge("charge", charge_body(house.submission(run, noise), **changed))


def test_forgery_of_an_honest_charge_is_honest(house: Institution) -> None:
    forge_charge(house)
    assert found(house) == set()


@pytest.mark.parametrize("epsilon", ["0.877", "0.87789", "0", "0.877903", "0.9", "Infinity"])
def test_charge_of_another_epsilon(house: Institution, epsilon: str) -> None:
    number = forge_charge(house, epsilon=epsilon)
    assert (number, "epsilon") in found(house)


def test_charge_of_a_smaller_delta(house: Institution) -> None:
    number = forge_charge(house, delta="0.000001")
    assert (number, "terms") in found(house)


def test_charge_of_fewer_events(house: Institution) -> None:
    number = forge_charge(house, events=[SampledGaussian(12.0, 1.0, 1).as_json()])
    assert found(house) == {(number, "events")}


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "sampled-gaussian", "noise_multiplier": "-1", "sampling_rate": "1.0", "count": "8"},
        {"kind": "sampled-gaussian", "noise_multiplier": "1e300", "sampling_rate": "nan", "count": "-8"},
        {"kind": "laplace", "noise_multiplier": "1", "sampling_rate": "1.0", "count": "8"},
    ],
)
def test_absurd_events(house: Institution, event: dict[str, str]) -> None:
    number = forge_charge(house, events=[event])
    assert {code for place, code in found(house) if place == number} <= {"events", "malformed"}
    assert found(house)


@pytest.mark.parametrize("noise", [0.05, 0.1])  # less is no plan
def test_absurd_noise_is_named_and_does_not_hang(house: Institution, noise: float) -> None:
    text = json.loads(house.submission("run-1").canonical)
    text["claim"]["noise_multiplier"] = text["plan"]["privacy"]["noise-multiplier"] = noise
    submission = Submission(type(house.submission("x").body).model_validate(text))
    body = charge_body(house.submission("run-1"), submission=submission.hash, plan=submission.canonical.decode())
    number = house.forge("charge", body)
    assert (number, "epsilon") in found(house)


def test_charge_above_the_account(house: Institution) -> None:
    numbers = [forge_charge(house, f"run-{run}", noise=3.0) for run in range(4)]
    assert found(house) == {(numbers[2], "account-exceeded"), (numbers[3], "account-exceeded")}


def test_charge_above_the_accounts_delta(house: Institution) -> None:
    numbers = [forge_charge(house, f"run-{run}", noise=100.0) for run in range(11)]
    assert found(house) == {(numbers[10], "account-exceeded")}


def test_charge_above_a_renyi_account(house: Institution) -> None:
    house.open("clinic", epsilon="3", filter="renyi", typical=(SampledGaussian(12.0, 1.0, 8),))
    submissions = [house.submission(f"run-{run}", 6.0, "clinic") for run in range(40)]
    admitted = [submission for submission in submissions if house.admit(submission)]
    assert 1 < len(admitted) < 40
    assert found(house) == set()
    refused = submissions[len(admitted)]
    charges = [entry for entry in house.ledger.entries() if entry.kind == "charge"]
    again = charge_body(refused, account="clinic", dataset="clinic", divergence=charges[0].content["divergence"])
    number = house.forge("charge", again)
    assert found(house) == {(number, "account-exceeded")}
    number_2 = house.forge("charge", again | {"run": "run-39", "divergence": "0.000000001"})
    assert (number_2, "divergence") in found(house)


def test_run_charged_twice(house: Institution) -> None:
    forge_charge(house)
    number = forge_charge(house)
    assert found(house) == {(number, "charged-twice")}


def test_plan_that_is_not_the_submission(house: Institution) -> None:
    number = forge_charge(house, submission="a" * 64)
    assert found(house) == {(number, "submission")}


def test_plan_that_is_no_plan(house: Institution) -> None:
    number = forge_charge(house, plan="[" * 30_000)
    assert found(house) == {(number, "submission")}


def test_delta_above_one_over_declared_size(house: Institution) -> None:
    house.open("city", size=200_000)
    submission = house.submission("run-1", dataset="city")
    number = house.forge("charge", charge_body(submission, dataset="city", account="city", declared_size="200000"))
    assert found(house) == {(number, "delta-too-large")}


def test_other_declared_size_and_foreign_data_set(house: Institution) -> None:
    house.open("city")
    first = forge_charge(house, declared_size="999")
    second = forge_charge(house, "run-2", dataset="city")
    third = forge_charge(house, "run-3", dataset="nowhere")
    told = {(second - 2, "facts"), (third - 2, "facts")}  # what the policy was shown of a data set that is not so
    assert found(house) == {(first, "terms"), (second, "dataset"), (third, "dataset")} | told


def test_charge_to_a_void_or_closed_account(house: Institution) -> None:
    house.open("attic", allows_none=True)
    assert house.admit(house.submission("open", dataset="attic", text=NO_CLAIM))
    void = forge_charge(house, "run-1", account="attic", dataset="attic")
    house.accounts.close_account("ward", "the end")
    closed = forge_charge(house, "run-2")
    assert found(house) == {(void, "account-void"), (closed, "account-closed")}


def test_run_without_a_claim_where_none_is_allowed(house: Institution) -> None:
    submission = house.submission("open", text=NO_CLAIM)
    body = charge_body(house.submission("x")) | {
        "run": "open",
        "submission": submission.hash,
        "plan": submission.canonical.decode(),
        "unit": "none",
        "epsilon": "Infinity",
        "delta": "1",
        "expires": submission.body.expires,
        "events": [],
    }
    number = house.forge("charge", body)
    assert found(house) == {(number, "unit")}
    again = house.forge("charge", body | {"run": "again", "epsilon": "0.1"})
    assert (again, "epsilon") in found(house)


def begin_body(run: str = "run-1", round_: int = 1, attempt: int = 1) -> dict[str, str]:
    return {"run": run, "stage": "train", "round": str(round_), "attempt": str(attempt), "request": "a" * 64}


def test_begin_without_charge(house: Institution) -> None:
    assert found(house) == set()
    number = house.forge("begin", begin_body())
    assert found(house) == {(number, "begin")}


def test_begin_beyond_the_charge(house: Institution) -> None:
    forge_charge(house)  # three rounds and a spare one
    numbers = [house.forge("begin", begin_body(attempt=attempt)) for attempt in range(1, 6)]
    assert found(house) == {(numbers[4], "beyond-charge")}


def test_begin_twice_and_of_no_round(house: Institution) -> None:
    forge_charge(house)
    house.forge("begin", begin_body())
    twice = house.forge("begin", begin_body())
    outside = house.forge("begin", begin_body(round_=4))
    assert found(house) == {(twice, "begin"), (outside, "begin")}


@pytest.mark.parametrize(
    ("told", "value"),
    [("noise_multiplier", "11.9"), ("clip_norm", "2.0"), ("sampling_rate", "0.5"), ("steps", "3"), ("task", "other")],
)
def test_answer_of_another_execution(house: Institution, told: str, value: str) -> None:
    forge_charge(house)
    house.forge("begin", begin_body())
    key = {name: text for name, text in begin_body().items() if name != "request"}
    body = key | {"answer": "b" * 64} | done(house.submission("run-1")) | {told: value}
    number = house.forge("answer", body)
    assert found(house) == {(number, "execution")}
    again = house.forge("answer", body | {told: done(house.submission("run-1"))[told]})
    assert (again, "answer") in found(house)
    silent = house.forge("answer", key | {"answer": "b" * 64, "attempt": "9"})
    assert (silent, "answer") in found(house)


def test_trainer_that_does_not_tell_its_noise(house: Institution) -> None:
    forge_charge(house)
    house.forge("begin", begin_body())
    told = done(house.submission("run-1"))
    del told["noise_multiplier"]
    key = {name: text for name, text in begin_body().items() if name != "request"}
    number = house.forge("answer", key | {"answer": "b" * 64} | told)
    assert found(house) == {(number, "execution")}


def test_release_of_what_began_or_had_not_expired(house: Institution) -> None:
    forge_charge(house)
    house.forge("begin", begin_body())
    forge_charge(house, "run-2")
    early = house.forge("release", {"run": "run-2", "why": "because"})
    house.clock.moment = house.clock.moment.replace(year=2027)
    begun = house.forge("release", {"run": "run-1", "why": "because"})
    after = house.forge("begin", begin_body("run-2"))
    told = (after - 1, "facts")  # what the policy was shown of the account: the charge in it, and it was given back
    assert found(house) == {(early, "release"), (begun, "release"), (after, "begin"), told}


def test_raise_downwards(house: Institution) -> None:
    number = house.forge("raise", {"account": "ward", "epsilon": "5", "from": "10", "because": "savings"})
    assert found(house) == {(number, "account")}
    second = house.forge("raise", {"account": "ward", "epsilon": "7", "from": "10", "because": "a lie about the past"})
    assert (second, "account") in found(house)


def test_second_account_for_one_path(house: Institution) -> None:
    house.open("fresh")
    body = {"dataset": "again", "task": "digits", "path": "/data/ward.csv", "declared_size": "9", "account": "fresh"}
    number = house.forge("dataset", body)
    assert found(house) == {(number, "dataset")}


def test_account_opened_twice_and_opening_twice(house: Institution) -> None:
    account = house.ledger.entry(2)
    opening = house.ledger.entry(1)
    assert account is not None
    assert opening is not None
    first = house.forge("account", account.content | {"epsilon": "1000"})
    second = house.forge("opened", opening.content)
    unknown = house.forge("note", {"words": "a kind of its own"})
    assert found(house) == {(first, "account"), (second, "opening"), (unknown, "unknown-kind")}


def test_charge_below_a_lower_estimate(house: Institution) -> None:
    number = forge_charge(house)
    assert found(house, (lambda events, delta: 0.5,)) == set()
    assert found(house, (lambda events, delta: 0.5, lambda events, delta: 0.95)) == {(number, "accountants")}


def test_check_that_fails_is_a_note(house: Institution) -> None:
    def check(events: object, delta: float) -> float:
        raise ValueError("out of its domain")

    forge_charge(house)
    audit = audit_ledger(house.path, public_key=house.key.public, checks=(check,))
    assert audit.holds
    assert "out of its domain" in audit.notes[0]


def test_countersignature_that_does_not_hold(tmp_path: Path) -> None:
    house = Institution(tmp_path / "named", owner="hospital-a")
    house.open()
    house.witness()
    good = house.ledger.entry(4)
    assert good is not None
    assert found(house) == set()
    entry = house.ledger.entry(2)
    assert entry is not None
    number = house.forge("witnessed", good.content | {"sequence": "2", "hash": entry.hash})
    assert found(house) == {(number, "witness-entry")}


@pytest.mark.parametrize("number", ["1", "4", "5"])
def test_number_given_up_without_a_recovery(house: Institution, number: str) -> None:
    """An entry `lost` could stand where a charge was cut out: only a recovery may give numbers up."""
    forged = house.forge("lost", {"entry": number})
    assert (forged, "lost") in found(house)
