"""The rules 1 to 9 at the head of guard.py, each with what breaks when it is not kept. Real ledgers, real processes."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from privet.privacy.budget.accounting import epsilon_of, rounded_up
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.budget.filters import renyi_cost, renyi_limit
from privet.privacy.budget.guard import Attempt, Guard
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import LedgerError, Refusal, RefusedError
from privet.privacy.submission import Submission
from signed_ledgers import ACCOUNT, DATASET, DECLARED, declared, guard_of, opened, read

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EVALUATION = ("evaluation.every=2", "evaluation.noise-multiplier=20.0")
HASH, OTHER_HASH = "aa" * 32, "bb" * 32

MakeSubmission = Callable[..., Submission]


def attempt_at(number: int, attempt: int = 1, stage: str = "train", request_hash: str = HASH) -> Attempt:
    return Attempt(stage, number, attempt, request_hash)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = opened(path, now=NOW)
    yield ledger
    ledger.close()


@pytest.fixture
def accounts(ledger: Ledger) -> AccountBook:
    return declared(ledger)


@pytest.fixture
def guard(accounts: AccountBook) -> Guard:
    return Guard(accounts, DATASET)


@pytest.fixture
def private(make_submission: MakeSubmission) -> Submission:
    """Four rounds, one spare, two evaluations; noise multiplier 4 at sampling rate 0.5."""
    return make_submission(*EVALUATION, private=True)


def kinds(path: Path) -> list[str]:
    """What happened since the data set was declared."""
    found = [entry.kind for entry in read(path)]
    assert found[:3] == DECLARED
    return found[3:]


def refused(code: Refusal) -> "pytest.RaisesExc[RefusedError]":
    return pytest.raises(RefusedError, check=lambda error: error.code == code)


# 1. Charged in full, durably, before anything else.


def test_submission_is_charged_in_full_before_anything_else(guard: Guard, private: Submission, path: Path) -> None:
    guard.admit(private, NOW)
    *before, charge = read(path)
    assert ([entry.kind for entry in before], charge.kind) == (DECLARED, "charge")
    events = (SampledGaussian(4.0, 0.5, 10), SampledGaussian(20.0, 1.0, 2))
    assert charge.content == {
        "run": "run-1",
        "submission": private.hash,
        "plan": private.canonical.decode(),
        "dataset": "synthetic",
        "declared_size": "100",
        "account": "records",
        "unit": "record",
        "epsilon": str(rounded_up(epsilon_of(events, 1e-5))),
        "delta": "0.00001",
        "divergence": "0",
        "expires": "2026-12-22T12:00:00Z",
        "relation": "add-or-remove-one",
        "accountant": "PLD, dp-accounting, grid 1e-3",
        "events": [event.as_json() for event in events],
    }


def test_nothing_begins_before_the_charge(guard: Guard, private: Submission, path: Path) -> None:
    with pytest.raises(ValueError, match="run-1 was not admitted"):
        guard.begin(private, attempt_at(1))
    assert kinds(path) == []


def test_a_run_without_a_claim_is_recorded_without_an_epsilon(
    guard: Guard, make_submission: MakeSubmission, path: Path
) -> None:
    submission = make_submission()
    guard.admit(submission, NOW)
    told = read(path)[-1].content
    assert (told["run"], told["submission"], told["unit"]) == ("run-1", submission.hash, "none")
    assert (told["epsilon"], told["events"]) == ("Infinity", [])
    assert "relation" not in told
    standing = guard.standing(submission)
    assert (standing.epsilon, standing.epsilon_executed, standing.delta, standing.unit) == (None, None, None, "none")


def test_submission_is_not_admitted_outside_its_validity(
    guard: Guard, make_submission: MakeSubmission, path: Path
) -> None:
    submission = make_submission(private=True, now=NOW)
    for moment in (NOW - timedelta(seconds=1), NOW + timedelta(days=30)):
        with refused(Refusal.NOT_VALID_NOW):
            guard.admit(submission, moment)
    assert kinds(path) == ["refused"]  # the second says nothing new on that day
    guard.admit(submission, NOW + timedelta(days=30) - timedelta(seconds=1))
    assert kinds(path)[-1] == "charge"


# 2. A run id is admitted once.


def test_the_same_submission_is_charged_once(guard: Guard, private: Submission, path: Path) -> None:
    for moment in (NOW, NOW, NOW + timedelta(days=400)):  # validity is asked for at admission only
        guard.admit(private, moment)
    assert kinds(path) == ["charge"]


def test_the_same_submission_is_charged_once_over_a_restart(
    ledger: Ledger, guard: Guard, private: Submission, path: Path
) -> None:
    guard.admit(private, NOW)
    guard_of(ledger).admit(private, NOW)
    assert kinds(path) == ["charge"]


def test_another_submission_under_an_admitted_run_id(
    guard: Guard, private: Submission, make_submission: MakeSubmission, path: Path
) -> None:
    guard.admit(private, NOW)
    other = make_submission(*EVALUATION, "run.rounds=100", private=True)
    with refused(Refusal.OTHER_SUBMISSION):
        guard.admit(other, NOW)
    assert kinds(path) == ["charge", "refused"]
    assert guard.standing(private).epsilon == Decimal(read(path)[3].content["epsilon"])


def test_attempts_of_another_submission_under_an_admitted_run_id(
    guard: Guard, private: Submission, make_submission: MakeSubmission, path: Path
) -> None:
    """Attack: more rounds than were charged, by a second submission that skips admission."""
    guard.admit(private, NOW)
    other = make_submission(*EVALUATION, "run.rounds=100", private=True)
    with refused(Refusal.OTHER_SUBMISSION):
        guard.begin(other, attempt_at(90))
    with refused(Refusal.OTHER_SUBMISSION):
        guard.answered(other, attempt_at(1), "cc" * 32, {})
    assert kinds(path) == ["charge", "refused"]


def test_runs_are_counted_apart(guard: Guard, make_submission: MakeSubmission) -> None:
    one, other = (make_submission(private=True, run_id=run_id) for run_id in ("run-1", "run-2"))
    guard.admit(one, NOW)
    guard.admit(other, NOW)
    for number in (1, 2, 3):
        guard.begin(one, attempt_at(number))
    guard.begin(other, attempt_at(1, request_hash=OTHER_HASH))
    assert (guard.standing(one).attempts, guard.standing(other).attempts) == (3, 1)


# 3. The node's own epsilon, at most the claim; delta below one over the declared size.


def lying(private: Submission, epsilon: float) -> Submission:
    """The submission with another claim, as a coordinator's own program might write it."""
    body = private.body.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["claim"]["epsilon"] = epsilon
    return Submission.from_bytes(rfc8785.dumps(body))


def test_node_refuses_submission_that_costs_more_than_it_claims(guard: Guard, private: Submission, path: Path) -> None:
    assert private.claim is not None
    with refused(Refusal.EPSILON_ABOVE_CLAIM):
        guard.admit(lying(private, round(private.claim.epsilon - 1e-6, 6)), NOW)
    assert kinds(path) == ["refused"]


def test_node_admits_submission_that_claims_more_than_it_costs_and_charges_the_cost(
    guard: Guard, private: Submission, path: Path
) -> None:
    guard.admit(lying(private, 90.0), NOW)
    assert private.claim is not None
    assert float(read(path)[3].content["epsilon"]) == private.claim.epsilon


@pytest.mark.parametrize("noise", [f"{1 + number / 10:.1f}" for number in range(0, 30, 3)])
def test_node_admits_what_its_coordinator_resolved_from_a_noise_multiplier(
    guard: Guard, make_submission: MakeSubmission, noise: str
) -> None:
    """Half of all such claims are doubles just below their decimals: compared as doubles, honest plans were refused."""
    submission = make_submission(f"privacy.noise-multiplier={noise}", private=True)
    guard.admit(submission, NOW)
    assert submission.claim is not None
    assert guard.standing(submission).epsilon == Decimal(repr(submission.claim.epsilon))


@pytest.mark.parametrize("epsilon", ["0.15", "1.15", "2.9999999", "3"])
def test_node_admits_what_its_coordinator_resolved_from_an_epsilon(
    guard: Guard, make_submission: MakeSubmission, epsilon: str
) -> None:
    asked = ("privacy.unit=record", f"privacy.epsilon={epsilon}", "privacy.delta=1e-5", "privacy.clip-norm=1.0")
    submission = make_submission(*asked)
    guard.admit(submission, NOW)
    charged = guard.standing(submission).epsilon
    assert charged is not None
    assert Decimal("0.99") * Decimal(epsilon) < charged <= Decimal(epsilon)


@pytest.mark.parametrize(("size", "admitted"), [(99_999, True), (100_000, False), (10**9, False)])
def test_node_refuses_delta_that_is_not_below_one_over_its_size(
    ledger: Ledger, private: Submission, path: Path, size: int, admitted: bool
) -> None:
    guard = Guard(declared(ledger, size=size), DATASET)
    if admitted:
        guard.admit(private, NOW)
    else:
        with refused(Refusal.DELTA_TOO_LARGE):
            guard.admit(private, NOW)
    assert kinds(path) == ["charge" if admitted else "refused"]


def test_a_refusal_is_in_the_ledger_with_its_code_and_its_reason(
    ledger: Ledger, private: Submission, path: Path
) -> None:
    with refused(Refusal.DELTA_TOO_LARGE) as caught:
        Guard(declared(ledger, size=10**6), DATASET).admit(private, NOW)
    assert read(path)[-1].content == {
        "run": "run-1",
        "submission": private.hash,
        "dataset": "synthetic",
        "operator": "tester",
        "code": "delta-too-large",
        "why": caught.value.message,
    }
    assert "1 / declared size = 1 / 1000000 = 1e-06" in caught.value.message
    assert caught.value.remedy


def test_a_refused_run_may_be_submitted_again(guard: Guard, private: Submission) -> None:
    assert private.claim is not None
    with refused(Refusal.EPSILON_ABOVE_CLAIM):
        guard.admit(lying(private, 0.001), NOW)
    guard.admit(private, NOW)


# 4. The account's unit or a stronger one, and its filter.


def terms(epsilon: str = "10", delta: str = "1e-4", **changes: Any) -> AccountTerms:
    return AccountTerms("record", Decimal(epsilon), Decimal(delta), **changes)


def at_unit(submission: Submission, unit: str) -> Submission:
    """The submission with another unit, and a claim that is large enough: `group` is offered by no plan file yet."""
    assert submission.claim is not None
    privacy = submission.plan.privacy.model_copy(update={"unit": unit})
    plan, claim = submission.plan.model_copy(update={"privacy": privacy}), submission.claim
    changes = {"plan": plan, "claim": claim.model_copy(update={"epsilon": 9.0})}
    return Submission(submission.body.model_copy(update=changes))


UNITS = ("record", "group", "node")


@pytest.mark.parametrize("asked", UNITS)
@pytest.mark.parametrize("protected", UNITS)
def test_unit_is_the_accounts_or_a_stronger_one(
    ledger: Ledger, private: Submission, path: Path, protected: str, asked: str
) -> None:
    guard = Guard(declared(ledger, replace(terms(), unit=protected)), DATASET)
    if UNITS.index(asked) >= UNITS.index(protected):
        guard.admit(at_unit(private, asked), NOW)
    else:
        with refused(Refusal.UNIT_NOT_OFFERED):
            guard.admit(at_unit(private, asked), NOW)
    assert kinds(path)[0] == ("charge" if UNITS.index(asked) >= UNITS.index(protected) else "refused")


def test_account_pays_to_its_last_epsilon_and_no_more(
    ledger: Ledger, make_submission: MakeSubmission, path: Path
) -> None:
    """Three runs fit exactly; with a millionth less the third does not."""
    runs = [make_submission(private=True, run_id=f"run-{number}") for number in range(4)]
    assert runs[0].claim is not None
    epsilon = Decimal(repr(runs[0].claim.epsilon))
    accounts = declared(ledger, terms(str(3 * epsilon - Decimal("1e-6"))))
    guard = Guard(accounts, DATASET)
    for run in runs[:2]:
        guard.admit(run, NOW)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard.admit(runs[2], NOW)
    accounts.raise_account(ACCOUNT, 3 * epsilon, "a vote")
    guard.admit(runs[2], NOW)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard_of(ledger).admit(runs[3], NOW)
    assert kinds(path) == ["charge", "charge", "refused", "raise", "charge", "refused"]
    assert accounts.book.accounts[ACCOUNT].spent_epsilon == 3 * epsilon


def test_account_pays_to_its_last_delta_and_no_more(ledger: Ledger, make_submission: MakeSubmission) -> None:
    guard = Guard(declared(ledger, terms("1000", "2e-5")), DATASET)
    for number in (1, 2):
        guard.admit(make_submission(private=True, run_id=f"run-{number}"), NOW)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard.admit(make_submission(private=True, run_id="run-3"), NOW)


def test_renyi_account_pays_up_to_its_limit_of_divergence(ledger: Ledger, make_submission: MakeSubmission) -> None:
    events = (SampledGaussian(4.0, 0.5, 10),)
    accounts = declared(ledger, terms("8", "1e-4", filter="renyi", typical=events))
    guard, account = Guard(accounts, DATASET), accounts.book.accounts[ACCOUNT]
    assert account.alpha is not None
    fitting = int(renyi_limit(account.epsilon, account.delta, account.alpha) / renyi_cost(events, account.alpha))
    assert fitting >= 2
    for number in range(fitting):
        guard.admit(make_submission(private=True, run_id=f"run-{number}"), NOW)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard.admit(make_submission(private=True, run_id="run-more"), NOW)


def test_closed_account_admits_nothing_more(
    accounts: AccountBook, guard: Guard, make_submission: MakeSubmission
) -> None:
    accounts.close_account(ACCOUNT, "the study is over")
    for submission in (make_submission(), make_submission(private=True)):
        with refused(Refusal.ACCOUNT_CLOSED):
            guard.admit(submission, NOW)


def test_data_set_that_was_removed_is_not_offered(accounts: AccountBook, guard: Guard, private: Submission) -> None:
    accounts.remove_dataset(DATASET)
    with refused(Refusal.UNKNOWN_DATASET):
        guard.admit(private, NOW)
    assert accounts.book.runs == {}


# 5. A plan without a claim: only where the account allows it, and it voids the account.


def test_plan_without_a_claim_is_refused_where_the_account_does_not_allow_it(
    ledger: Ledger, make_submission: MakeSubmission, private: Submission, path: Path
) -> None:
    guard = Guard(declared(ledger, terms()), DATASET)
    with refused(Refusal.UNIT_NOT_OFFERED):
        guard.admit(make_submission(run_id="run-2"), NOW)
    guard.admit(private, NOW)
    assert kinds(path) == ["refused", "charge"]


def test_plan_without_a_claim_voids_its_account_for_good(
    accounts: AccountBook, guard: Guard, make_submission: MakeSubmission, path: Path
) -> None:
    """Nothing gives it back: not that it never began, nor that it expired, nor a restart, nor a raise."""
    guard.admit(make_submission(), NOW)
    later = NOW + timedelta(days=60)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard.admit(make_submission(private=True, run_id="run-2", now=later), later)
    with refused(Refusal.BUDGET_EXHAUSTED):
        guard_of(accounts.ledger).admit(make_submission(private=True, run_id="run-2", now=later), later)
    assert accounts.book.accounts[ACCOUNT].epsilon_spent == Decimal("Infinity")
    guard.admit(make_submission(run_id="run-3", now=later), later)  # there is nothing left to protect
    assert kinds(path) == ["charge", "refused", "charge"]


# 6. A charge that never began is released when its submission expires, and is dead.


def test_charge_that_never_began_is_released_when_it_expires(
    ledger: Ledger, make_submission: MakeSubmission, path: Path
) -> None:
    """The account pays for one run at a time; a second fits as soon as the first is released, and not before."""
    accounts = declared(ledger, terms("1000", "1e-5"))
    guard, expiry = Guard(accounts, DATASET), NOW + timedelta(days=30)
    early, late = NOW + timedelta(days=20), make_submission(private=True, run_id="run-2", now=NOW + timedelta(days=20))
    first = make_submission(private=True)
    guard.admit(first, NOW)
    for moment in (early, expiry - timedelta(seconds=1)):
        with refused(Refusal.BUDGET_EXHAUSTED):
            guard.admit(late, moment)
    guard.admit(late, expiry)
    assert kinds(path) == ["charge", "refused", "release", "charge"]
    assert accounts.book.accounts[ACCOUNT].spent_delta == Decimal("1e-5")
    assert guard.standing(first).epsilon == 0


def test_charge_is_released_once(
    accounts: AccountBook, guard: Guard, make_submission: MakeSubmission, path: Path
) -> None:
    """Attack: released at every admission, one charge would pay for them all."""
    later = NOW + timedelta(days=30)
    guard.admit(make_submission(private=True), NOW)
    for number in (2, 3):
        guard.admit(make_submission(private=True, run_id=f"run-{number}", now=later), later)
    assert kinds(path) == ["charge", "release", "charge", "charge"]
    assert accounts.book.accounts[ACCOUNT].spent_delta == Decimal("2e-5")


def test_released_charge_is_dead(guard: Guard, make_submission: MakeSubmission, path: Path) -> None:
    first, later = make_submission(private=True), NOW + timedelta(days=30)
    guard.admit(first, NOW)
    guard.admit(make_submission(private=True, run_id="run-2", now=later), later)
    for moment in (NOW, later):
        with refused(Refusal.OTHER_SUBMISSION):
            guard.admit(first, moment)
    with refused(Refusal.OTHER_SUBMISSION):
        guard.begin(first, attempt_at(1))
    assert "begin" not in kinds(path)


def test_charge_that_began_is_never_released(
    accounts: AccountBook, guard: Guard, make_submission: MakeSubmission, path: Path
) -> None:
    first, later = make_submission(private=True), NOW + timedelta(days=30)
    guard.admit(first, NOW)
    guard.begin(first, attempt_at(1))
    guard.admit(make_submission(private=True, run_id="run-2", now=later), later)
    assert kinds(path) == ["charge", "begin", "charge"]
    assert accounts.book.accounts[ACCOUNT].spent_delta == Decimal("2e-5")


def test_what_expired_is_released_though_the_step_is_refused(
    ledger: Ledger, make_submission: MakeSubmission, path: Path
) -> None:
    """It is true whatever is decided then, and what is decided rests on it: the entry of a denial says so."""
    accounts = declared(ledger, terms("1000", "1e-5"))
    guard, later = Guard(accounts, DATASET), NOW + timedelta(days=30)
    guard.admit(make_submission(private=True), NOW)
    with refused(Refusal.NOT_VALID_NOW):
        guard.admit(make_submission(private=True, run_id="run-2"), later)
    assert kinds(path) == ["charge", "release", "refused"]
    assert accounts.book.accounts[ACCOUNT].spent_delta == 0


# 7. `begin` is durable before the first record is read; a begun attempt is spent.


def test_begin_is_durable_when_it_returns(guard: Guard, private: Submission, path: Path) -> None:
    guard.admit(private, NOW)
    assert guard.begin(private, attempt_at(1)) is None
    begun = read(path)[-1]
    assert begun.kind == "begin"
    assert begun.content == {"run": "run-1", "stage": "train", "round": "1", "attempt": "1", "request": HASH}


def test_a_begun_attempt_without_an_answer_is_spent(guard: Guard, private: Submission, path: Path) -> None:
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    with refused(Refusal.ATTEMPT_SPENT):
        guard.begin(private, attempt_at(1))
    assert guard.standing(private).attempts == 1
    assert kinds(path) == ["charge", "begin", "refused"]


def test_an_attempt_is_still_spent_after_a_restart(ledger: Ledger, guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    with refused(Refusal.ATTEMPT_SPENT):
        guard_of(ledger).begin(private, attempt_at(1))


CHILD = """
import os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.guard import Attempt, Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import RefusedError
from privet.privacy.submission import Submission

submission = Submission.from_bytes(Path(sys.argv[2]).read_bytes())
path = Path(sys.argv[1])
key = SigningKey.load(path.with_suffix(".pem"))
ledger = Ledger.open(path, purpose="simulation", owner="node-1", key=key)
guard = Guard(AccountBook(ledger), "synthetic")
"""


def started(code: str, path: Path, submission: Submission, *arguments: object) -> subprocess.Popen[str]:
    asked = path.with_suffix(".json")
    asked.write_bytes(submission.canonical)
    command = [sys.executable, "-c", CHILD + code, str(path), str(asked), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_node_killed_between_begin_and_answer_has_spent_the_attempt(
    ledger: Ledger, guard: Guard, private: Submission, path: Path
) -> None:
    guard.admit(private, NOW)
    code = """
assert guard.begin(submission, Attempt("train", 1, 1, "aa" * 32)) is None
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = started(code, path, private)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -9, err
    with refused(Refusal.ATTEMPT_SPENT):
        guard_of(ledger).begin(private, attempt_at(1))
    standing = guard.standing(private)
    assert (standing.attempts, standing.answered) == (1, 0)
    assert standing.epsilon_executed == rounded_up(epsilon_of((SampledGaussian(4.0, 0.5, 2),), 1e-5))


def test_a_ledger_that_cannot_be_written_begins_nothing(private: Submission, path: Path) -> None:
    ledger = opened(path)
    declared(ledger)
    ledger.close()
    code = """
import resource
from privet.privacy.errors import LedgerError
guard.admit(submission, datetime(2026, 11, 22, 12, 0, tzinfo=UTC))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    guard.begin(submission, Attempt("train", 1, 1, "aa" * 32))
    print("begun")
except LedgerError as error:
    print("not begun")
"""
    child = started(code, path, private)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "not begun\n"), err
    assert kinds(path) == ["charge"]


# 8. The same attempt with the same bytes gets the kept answer; with other bytes it is refused.


def test_the_same_request_gets_the_kept_answer(guard: Guard, private: Submission, path: Path) -> None:
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    guard.answered(private, attempt_at(1), "cc" * 32, {})
    for _ in range(3):
        assert guard.begin(private, attempt_at(1)) == "cc" * 32
    assert kinds(path) == ["charge", "begin", "answer"]


def test_the_kept_answer_is_known_after_a_restart(ledger: Ledger, guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    guard.answered(private, attempt_at(1), "cc" * 32, {})
    assert guard_of(ledger).begin(private, attempt_at(1)) == "cc" * 32


@pytest.mark.parametrize("is_answered", [True, False])
def test_replayed_attempt_with_other_bytes(guard: Guard, private: Submission, is_answered: bool) -> None:
    """Attack: another model under an attempt that was answered, to get a second look for one charge."""
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    if is_answered:
        guard.answered(private, attempt_at(1), "cc" * 32, {})
    with refused(Refusal.ATTEMPT_MISMATCH):
        guard.begin(private, attempt_at(1, request_hash=OTHER_HASH))


def test_training_and_evaluation_of_one_round_are_two_attempts(guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(2))
    assert guard.begin(private, attempt_at(2, stage="evaluate", request_hash=OTHER_HASH)) is None


def test_only_what_began_is_answered_and_once(guard: Guard, private: Submission, path: Path) -> None:
    guard.admit(private, NOW)
    with pytest.raises(ValueError, match="did not begin so"):
        guard.answered(private, attempt_at(1), "cc" * 32, {})
    guard.begin(private, attempt_at(1))
    with pytest.raises(ValueError, match="did not begin so"):
        guard.answered(private, replace(attempt_at(1), request_hash=OTHER_HASH), "cc" * 32, {})
    guard.answered(private, attempt_at(1), "cc" * 32, {})
    with pytest.raises(ValueError, match="answered already"):
        guard.answered(private, attempt_at(1), "dd" * 32, {})
    assert kinds(path) == ["charge", "begin", "answer"]


# 9. Begun attempts never exceed what was charged.


def test_node_answers_rounds_and_spare_rounds_and_no_more(guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    for number in (1, 2, 3, 4):
        guard.begin(private, attempt_at(number))
    guard.begin(private, attempt_at(4, attempt=2))
    with refused(Refusal.ROUNDS_EXHAUSTED):
        guard.begin(private, attempt_at(4, attempt=3))
    assert guard.standing(private).attempts == 5


def test_node_answers_evaluations_that_were_charged_and_no_more(guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    for number in (1, 2):
        guard.begin(private, attempt_at(number, stage="evaluate"))
    with refused(Refusal.ROUNDS_EXHAUSTED):
        guard.begin(private, attempt_at(3, stage="evaluate"))
    guard.begin(private, attempt_at(1))  # training has its own count


def test_node_evaluates_nothing_for_a_plan_without_evaluation(guard: Guard, make_submission: MakeSubmission) -> None:
    submission = make_submission(private=True)
    guard.admit(submission, NOW)
    with refused(Refusal.ROUNDS_EXHAUSTED):
        guard.begin(submission, attempt_at(1, stage="evaluate"))


@pytest.mark.parametrize("number", [-1, 0, 5, 10**9])
def test_a_round_outside_the_plan_is_refused(guard: Guard, private: Submission, number: int) -> None:
    guard.admit(private, NOW)
    with refused(Refusal.MALFORMED_REQUEST):
        guard.begin(private, attempt_at(number))
    assert guard.standing(private).attempts == 0


def test_all_that_was_charged_when_executed_costs_what_was_charged(guard: Guard, private: Submission) -> None:
    guard.admit(private, NOW)
    before = guard.standing(private)
    assert before.epsilon_executed == 0
    for number in (1, 2, 3, 4):
        guard.begin(private, attempt_at(number))
        assert guard.standing(private).epsilon_executed < guard.standing(private).epsilon  # type: ignore[operator]
    guard.begin(private, attempt_at(1, attempt=2))
    for number in (2, 4):
        guard.begin(private, attempt_at(number, stage="evaluate"))
    after = guard.standing(private)
    assert after.epsilon_executed == after.epsilon == before.epsilon
    assert (after.attempts, after.evaluations, after.answered) == (5, 2, 0)
    assert (after.delta, after.unit) == (1e-5, "record")


def test_standing_of_an_unknown_run_is_nothing(guard: Guard, private: Submission) -> None:
    standing = guard.standing(private)
    assert (standing.epsilon, standing.epsilon_executed, standing.attempts) == (0, 0, 0)


def test_two_processes_that_race_for_the_last_attempt(guard: Guard, private: Submission, path: Path) -> None:
    """Attack: the same node started twice, each with a stale count. One attempt is left; one process gets it."""
    guard.admit(private, NOW)
    for number in (1, 2, 3, 4):
        guard.begin(private, attempt_at(number))
    code = """
guard.standing(submission)
print("ready", flush=True)
sys.stdin.readline()
try:
    print("begun", guard.begin(submission, Attempt("train", 4, 2 + int(sys.argv[3]), "aa" * 32)))
except RefusedError as refusal:
    print(refusal.code.value)
"""
    racing = [started(code, path, private, number) for number in range(3)]
    for child in racing:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in racing:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    told = sorted(child.communicate(timeout=60)[0].strip() for child in racing)
    assert told == ["begun None", "rounds-exhausted", "rounds-exhausted"]
    assert kinds(path).count("begin") == 5


def test_two_processes_that_race_to_admit_different_submissions(
    make_submission: MakeSubmission, path: Path, guard: Guard
) -> None:
    code = """
print("ready", flush=True)
sys.stdin.readline()
try:
    guard.admit(submission, datetime(2026, 11, 22, 12, 0, tzinfo=UTC))
    print("admitted")
except RefusedError as refusal:
    print(refusal.code.value)
"""
    racing = []
    for seed in (1, 2):
        submission = make_submission(f"run.seed={seed}", private=True)
        child = started(code, path, submission)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"  # it has read its submission, so the next may overwrite the file
        racing.append(child)
    for child in racing:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert sorted(child.communicate(timeout=60)[0].strip() for child in racing) == ["admitted", "other-submission"]
    assert kinds(path).count("charge") == 1


def test_ledger_rollback_inside_the_file_is_found(guard: Guard, private: Submission, path: Path) -> None:
    """Attack: a `begin` cut out of the middle, to win the attempt back."""
    guard.admit(private, NOW)
    guard.begin(private, attempt_at(1))
    guard.begin(private, attempt_at(2))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER no_delete")
    connection.execute("DELETE FROM entries WHERE sequence = 5")
    connection.close()
    ledger = opened(path)
    with pytest.raises(LedgerError, match="entry 5 is not what this institution wrote"):
        AccountBook(ledger)
    ledger.close()
