"""What people are asked to approve, and what they say: in the ledger, for one submission, the last word counts."""

from datetime import timedelta
from pathlib import Path

import pytest
from ledgers import Institution
from open_policy import EVERYTHING
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.approvals import say
from privet.privacy.budget.asked import Said
from privet.privacy.budget.book import Book
from privet.privacy.errors import BudgetError, Refusal, RefusedError, UsageError
from privet.privacy.submission import Submission

STEWARD = """
@id("needs-steward") @approval("data-steward")
forbid (principal, action in Action::"participate", resource)
unless { context.approvals.contains("data-steward") };
"""
ETHICS = """
@id("needs-ethics") @approval("ethics-board")
forbid (principal, action in Action::"participate", resource)
unless { context.approvals.contains("ethics-board") };
"""
NEVER = """
@id("never")
forbid (principal, action in Action::"participate", resource);
"""
TOO_LARGE = """
@id("too-large")
forbid (principal, action in Action::"participate", resource)
unless { context.plan.noiseMultiplier >= 8000000 };
"""
AT_RELEASE = """
@id("needs-steward") @approval("data-steward")
forbid (principal, action == Action::"releaseUpdate", resource)
unless { context.approvals.contains("data-steward") };
"""
SAYINGS: tuple[Said, ...] = ("approved", "refused")


@pytest.fixture
def ward(tmp_path: Path) -> Institution:
    institution = Institution(tmp_path)
    institution.open()
    institution.write_policy(STEWARD + EVERYTHING)
    return institution


def asks(ward: Institution, submission: Submission) -> str:
    """What the guard says to a submission: a code, or `admitted`."""
    try:
        ward.guard("ward").admit(submission, ward.clock.moment, ward.signer(submission.canonical))
    except RefusedError as refusal:
        return refusal.code.value
    return "admitted"


def kinds(ward: Institution, run: str = "run-1") -> list[str]:
    entries = [entry for entry in ward.ledger.entries() if entry.content.get("run") == run]
    return [f"decision {e.content['verdict']}" if e.kind == "decision" else e.kind for e in entries]


def test_approved_submission_is_admitted(ward: Institution) -> None:
    submission = ward.submission("run-1")
    assert asks(ward, submission) == "approval-pending"
    [pending] = ward.accounts.book.pending.values()
    assert (pending.run, pending.operator, pending.roles, pending.rules) == (
        *("run-1", "alice"),
        ("data-steward",),
        ("needs-steward",),
    )
    assert pending.plan == submission.canonical.decode()
    outcome = say(ward.accounts, "run-1", "data-steward", "approved", "agreed on 3 May")
    assert (outcome.missing, outcome.refusers) == ((), ())
    assert ward.accounts.book.pending == {}
    assert asks(ward, submission) == "admitted"
    assert kinds(ward) == ["decision pending", "refused", "approval", "decision permitted", "operator", "charge"]
    [approval] = [entry for entry in ward.ledger.entries() if entry.kind == "approval"]
    assert approval.content == {
        "run": "run-1",
        "submission": submission.hash,
        "role": "data-steward",
        "verdict": "approved",
        "because": "agreed on 3 May",
    }


def test_approval_holds_for_no_other_submission(ward: Institution) -> None:
    """An operator who gets one plan approved and then asks for more of the same name waits again."""
    assert asks(ward, ward.submission("run-1")) == "approval-pending"
    say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    assert asks(ward, ward.submission("run-1", noise=6.0)) == "approval-pending"
    assert asks(ward, ward.submission("run-2")) == "approval-pending"


def test_rejected_submission_stays_rejected_and_says_so(ward: Institution) -> None:
    submission = ward.submission("run-1")
    asks(ward, submission)
    outcome = say(ward.accounts, "run-1", "data-steward", "refused", "no consent")
    assert outcome.refusers == ("data-steward",)
    assert ward.accounts.book.pending == {}
    assert asks(ward, submission) == "approval-refused"
    ward.clock.moment += timedelta(days=2)  # on another day the decision is entered again
    assert asks(ward, submission) == "approval-refused"
    assert ward.accounts.book.pending == {}, "who has refused is not asked again"


def test_last_word_of_a_role_counts_until_the_run_is_admitted(ward: Institution) -> None:
    submission = ward.submission("run-1")
    asks(ward, submission)
    say(ward.accounts, "run-1", "data-steward", "refused", "by mistake")
    say(ward.accounts, "run-1", "data-steward", "approved", "it was the other study")
    say(ward.accounts, "run-1", "data-steward", "refused", "no, this one")
    assert asks(ward, submission) == "approval-refused"
    say(ward.accounts, "run-1", "data-steward", "approved", "agreed after all")
    assert asks(ward, submission) == "admitted"
    with pytest.raises(UsageError, match="'run-1' asks for no approval") as error:
        say(ward.accounts, "run-1", "data-steward", "refused", "too late")
    assert error.value.remedy == "privet node pending"


def test_every_role_must_approve_and_none_may_refuse(ward: Institution) -> None:
    ward.write_policy(STEWARD + ETHICS + EVERYTHING)
    submission = ward.submission("run-1")
    assert asks(ward, submission) == "approval-pending"
    assert say(ward.accounts, "run-1", "ethics-board", "approved", "agreed").missing == ("data-steward",)
    assert asks(ward, submission) == "approval-pending"
    say(ward.accounts, "run-1", "ethics-board", "refused", "taken back, for the plan is another than we thought")
    assert asks(ward, submission) == "approval-refused"
    outcome = say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    assert (outcome.missing, outcome.refusers) == (("ethics-board",), ("ethics-board",))
    say(ward.accounts, "run-1", "ethics-board", "approved", "explained")
    assert asks(ward, submission) == "admitted"


def test_pending_names_who_is_still_asked(ward: Institution) -> None:
    ward.write_policy(STEWARD + ETHICS + EVERYTHING)
    asks(ward, ward.submission("run-1"))
    asked = ward.accounts.book.asked
    assert asked.missing(asked.of_run("run-1")[0]) == ("data-steward", "ethics-board")
    say(ward.accounts, "run-1", "ethics-board", "approved", "agreed")
    asked = ward.accounts.book.asked
    assert asked.missing(asked.of_run("run-1")[0]) == ("data-steward",)


def test_role_that_is_not_asked_for_is_named_with_those_that_are(ward: Institution) -> None:
    ward.write_policy(STEWARD + ETHICS + EVERYTHING)
    asks(ward, ward.submission("run-1"))
    with pytest.raises(UsageError, match=r"run run-1 asks for no 'janitor'; asked for: data-steward, ethics-board"):
        say(ward.accounts, "run-1", "janitor", "approved", "why not")
    assert "approval" not in kinds(ward)


def test_run_that_does_not_wait_is_told_with_the_nearest(ward: Institution) -> None:
    asks(ward, ward.submission("ward-20261122-ab12"))
    with pytest.raises(UsageError, match=r"'ward-20261122-ab21' asks for no approval; did you mean ward-20261122-ab12"):
        say(ward.accounts, "ward-20261122-ab21", "data-steward", "approved", "agreed")


def test_same_word_twice_is_one_entry(ward: Institution) -> None:
    asks(ward, ward.submission("run-1"))
    say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    with pytest.raises(UsageError, match="data-steward has approved run run-1 already"):
        say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    assert kinds(ward).count("approval") == 1


@pytest.mark.parametrize("because", ["", "  ", "two\nlines", "x" * 1001, "\x1b[2J"])
def test_reason_is_a_line_of_text(ward: Institution, because: str) -> None:
    asks(ward, ward.submission("run-1"))
    with pytest.raises(BudgetError, match="--because"):
        say(ward.accounts, "run-1", "data-steward", "approved", because)


def test_nothing_that_has_expired_can_be_approved(ward: Institution) -> None:
    asks(ward, ward.submission("run-1"))
    ward.clock.moment += timedelta(days=31)
    with pytest.raises(UsageError, match="asks for no approval"):
        say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    asks(ward, ward.submission("run-2"))
    ward.clock.moment += timedelta(days=7)
    asks(ward, ward.submission("run-3"))
    assert [run for run, _ in ward.accounts.book.asked.open] == ["run-2", "run-3"], "what has expired is forgotten"


def test_attack_other_plan_sent_while_the_person_reads_the_first(ward: Institution) -> None:
    """The operator shows a small plan, and sends a large one under the same run id just before the steward types."""
    small, large = ward.submission("run-1", noise=12.0), ward.submission("run-1", noise=4.0)
    assert [asks(ward, small), asks(ward, large)] == ["approval-pending"] * 2
    assert [asked.submission for asked in ward.accounts.book.pending.values()] == [small.hash, large.hash]
    for said in SAYINGS:
        with pytest.raises(UsageError, match=f"with 2 submissions: {small.hash[:16]}, {large.hash[:16]}") as error:
            say(ward.accounts, "run-1", "data-steward", said, "I read the small plan")
        assert "--submission" in error.value.remedy
    with pytest.raises(UsageError, match="with no submission 'zzz'"):
        say(ward.accounts, "run-1", "data-steward", "approved", "I read the small plan", "zzz")
    outcome = say(ward.accounts, "run-1", "data-steward", "approved", "I read the small plan", small.hash[:16])
    assert outcome.asked.submission == small.hash
    assert asks(ward, large) == "approval-pending"
    assert asks(ward, small) == "admitted"
    assert ward.accounts.book.asked.open == {}, "no other submission of this run id can be admitted any more"


def test_attack_other_plan_sent_once_the_first_has_expired(ward: Institution) -> None:
    """The plan that was shown is remembered when it can be approved no more: what takes its place has to be named."""
    small = ward.submission("run-1")
    asks(ward, small)
    ward.clock.moment += timedelta(days=31)
    large = ward.submission("run-1", noise=4.0)
    asks(ward, large)
    with pytest.raises(UsageError, match="with 2 submissions"):
        say(ward.accounts, "run-1", "data-steward", "approved", "I read the small plan")
    with pytest.raises(UsageError, match="asks for no approval"):
        say(ward.accounts, "run-1", "data-steward", "approved", "I read the small plan", small.hash)


def test_plan_that_asks_again_after_another_adds_nothing_and_stays_known(ward: Institution) -> None:
    small, large = ward.submission("run-1"), ward.submission("run-1", noise=4.0)
    for submission in (small, large):
        asks(ward, submission)
    before = len(kinds(ward))
    for submission in (small, large, small):
        asks(ward, submission)
    assert len(kinds(ward)) == before
    assert set(ward.accounts.book.pending) == {("run-1", small.hash), ("run-1", large.hash)}


def test_rejection_after_the_policy_froze_an_approved_plan(ward: Institution) -> None:
    """A stale approval: taken back while another rule forbids the run, and the run stays out when that rule is gone."""
    submission = ward.submission("run-1")
    asks(ward, submission)
    say(ward.accounts, "run-1", "data-steward", "approved", "by mistake")
    ward.write_policy(STEWARD + NEVER + EVERYTHING)
    assert asks(ward, submission) == "policy-denied"
    say(ward.accounts, "run-1", "data-steward", "refused", "it was the other study")
    ward.write_policy(STEWARD + EVERYTHING)
    assert asks(ward, submission) == "approval-refused"


def test_attack_denied_variant_takes_the_waiting_plan_away(ward: Institution) -> None:
    ward.write_policy(STEWARD + TOO_LARGE + EVERYTHING)
    waiting = ward.submission("run-1")
    assert asks(ward, waiting) == "approval-pending"
    assert asks(ward, ward.submission("run-1", noise=4.0)) == "policy-denied"
    assert list(ward.accounts.book.pending) == [("run-1", waiting.hash)]
    say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    assert asks(ward, waiting) == "admitted"


def test_policy_that_forbids_ends_the_asking_and_one_that_asks_again_begins_it(ward: Institution) -> None:
    submission = ward.submission("run-1")
    asks(ward, submission)
    ward.write_policy(STEWARD + NEVER + EVERYTHING)
    assert asks(ward, submission) == Refusal.POLICY_DENIED.value
    assert ward.accounts.book.pending == {}
    ward.write_policy(STEWARD + EVERYTHING)
    assert asks(ward, submission) == "approval-pending"
    assert [run for run, _ in ward.accounts.book.pending] == ["run-1"], (
        "the same denial of one day, and yet it is asked about"
    )


def test_answer_that_needs_an_approval_waits_though_the_run_was_admitted(ward: Institution) -> None:
    ward.write_policy(AT_RELEASE + EVERYTHING)
    submission = ward.submission("run-1")
    assert asks(ward, submission) == "admitted"
    with pytest.raises(RefusedError, match="asks for the approval of data-steward"):
        ward.train(submission, 1)
    assert [run for run, _ in ward.accounts.book.pending] == ["run-1"]
    say(ward.accounts, "run-1", "data-steward", "approved", "agreed")
    ward.train(submission, 2)
    say(ward.accounts, "run-1", "data-steward", "refused", "that is enough")
    with pytest.raises(RefusedError, match="data-steward has refused"):
        ward.train(submission, 3)


def test_attack_charged_runs_past_their_expiry_push_each_other_out(ward: Institution) -> None:
    """Two runs that go on after their submissions expired, and a rule that asks a person: one entry each, and each can
    be approved.
    """
    ward.write_policy(EVERYTHING)
    first, second = ward.submission("run-1"), ward.submission("run-2")
    for submission in (first, second):
        assert asks(ward, submission) == "admitted"
        ward.train(submission, 1)
    ward.write_policy(STEWARD + EVERYTHING)
    ward.clock.moment += timedelta(days=40)
    for _ in range(5):
        for submission in (first, second):
            with pytest.raises(RefusedError, match="asks for the approval"):
                ward.train(submission, 2)
    assert [kinds(ward, run).count("decision pending") for run in ("run-1", "run-2")] == [1, 1]
    for run, submission in (("run-1", first), ("run-2", second)):
        say(ward.accounts, run, "data-steward", "approved", "it may go on")
        ward.train(submission, 2)


def test_charge_that_is_given_back_waits_for_nobody(ward: Institution) -> None:
    ward.write_policy(EVERYTHING)
    submission = ward.submission("run-1")
    assert asks(ward, submission) == "admitted"
    ward.write_policy(STEWARD + EVERYTHING)
    with pytest.raises(RefusedError, match="asks for the approval"):
        ward.train(submission, 1)
    assert list(ward.accounts.book.pending) == [("run-1", submission.hash)]
    ward.clock.moment += timedelta(days=31)
    asks(ward, ward.submission("run-2"))
    assert [run for run, _ in ward.accounts.book.pending] == ["run-2"]


def test_approvals_survive_a_snapshot(ward: Institution) -> None:
    ward.write_policy(STEWARD + ETHICS + EVERYTHING)
    asks(ward, ward.submission("run-1"))
    say(ward.accounts, "run-1", "ethics-board", "approved", "agreed")
    book = ward.accounts.book
    kept = Book.load(book.dump())
    assert kept.pending == book.pending != {}
    assert kept.approvals == book.approvals
    assert kept.asked.count == book.asked.count == 1
    assert AccountBook(ward.ledger).book.dump() == book.dump()
