"""Who asks again and again fills no ledger: a refusal is entered once a day, and a thousand a day at most."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.ledger import Ledger
from privet.privacy.budget.refusals import record_refusal
from privet.privacy.budget.refused_today import MOST_OF_ALL, MOST_OF_ONE, RefusedToday
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.submission import Submission
from signed_ledgers import DATASET, declared, key_of, read

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
Make = Callable[..., Submission]


class Days:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def days() -> Days:
    return Days()


def book_of(path: Path, days: Days, is_new: bool = False) -> AccountBook:
    ledger = Ledger.open(path, purpose="simulation", owner="node-1", key=key_of(path), clock=days)
    return declared(ledger) if is_new else AccountBook(ledger)


def refusal(code: Refusal = Refusal.NOT_SIGNED) -> RefusedError:
    return RefusedError(code, "because", "ask")


def codes(path: Path) -> list[str]:
    return [entry.content["code"] for entry in read(path) if entry.kind == "refused"]


def test_one_refusal_is_entered_once_a_day(path: Path, days: Days, make_submission: Make) -> None:
    book, submission = book_of(path, days, is_new=True), make_submission()
    for _ in range(3):
        record_refusal(book, submission, refusal())
    assert codes(path) == ["not-signed"]
    days.now += timedelta(days=1)
    for _ in range(3):
        record_refusal(book, submission, refusal())
    assert codes(path) == ["not-signed"] * 2


def test_another_code_submission_or_run_is_another_refusal(path: Path, days: Days, make_submission: Make) -> None:
    book = book_of(path, days, is_new=True)
    for submission in (make_submission(), make_submission("run.seed=9"), make_submission(run_id="run-2")):
        record_refusal(book, submission, refusal())
        record_refusal(book, submission, refusal(Refusal.OPERATOR_REVOKED))
    assert len(codes(path)) == 6


def test_a_restart_does_not_forget_what_was_refused_today(path: Path, days: Days, make_submission: Make) -> None:
    book, submission = book_of(path, days, is_new=True), make_submission()
    record_refusal(book, submission, refusal())
    book.ledger.close()
    book = book_of(path, days)
    record_refusal(book, submission, refusal())
    book.ledger.save_snapshot(book.ledger.head().sequence, book.book.dump())  # type: ignore[union-attr]
    book.ledger.close()
    book = book_of(path, days)
    record_refusal(book, submission, refusal())
    assert codes(path) == ["not-signed"]


def test_attack_flood_of_submissions_fills_no_ledger(path: Path, days: Days, make_submission: Make) -> None:
    book = book_of(path, days, is_new=True)
    most = MOST_OF_ONE["stranger"]
    for number in range(most + 5):
        record_refusal(book, make_submission(run_id=f"run-{number}"), refusal())
    assert len(codes(path)) == most
    days.now += timedelta(days=1)
    record_refusal(book, make_submission(run_id="run-1004"), refusal())
    assert len(codes(path)) == most + 1


def test_attack_flood_of_unsigned_submissions_leaves_room_for_operators() -> None:
    """Whatever name strangers use: they have one quota together, and operators have theirs, each its own."""
    today = RefusedToday()
    for number in range(MOST_OF_ONE["stranger"]):
        today.note("2026-11-22", (f"run-{number}", "", "not-signed"), "stranger", f"name-{number}")
    assert not today.has_room("2026-11-22", "stranger", "another-name")
    assert today.has_room("2026-11-22", "pending", "alice")
    assert today.has_room("2026-11-22", "denied", "alice")
    for number in range(MOST_OF_ONE["denied"]):
        today.note("2026-11-22", (f"run-{number}", "", "admit/denied//"), "denied", "mallory")
    assert not today.has_room("2026-11-22", "denied", "mallory")
    assert today.has_room("2026-11-22", "pending", "mallory")
    assert today.has_room("2026-11-22", "denied", "alice")
    assert today.has_room("2026-11-23", "denied", "mallory")
    assert RefusedToday.load(json.loads(json.dumps(today.dump()))).dump() == today.dump()


def test_attack_flood_by_many_operators_ends_too() -> None:
    """The coordinator can name operators without end, where the institution pinned none."""
    today = RefusedToday()
    for number in range(MOST_OF_ALL["pending"]):
        today.note("2026-11-22", ("run", f"{number}", "admit/pending//"), "pending", f"operator-{number}")
    assert not today.has_room("2026-11-22", "pending", "alice")
    assert today.has_room("2026-11-22", "denied", "alice")


def test_same_thing_entered_again_counts_again() -> None:
    """What is counted are entries: else two runs, each of which takes the other's place, fill a ledger."""
    today = RefusedToday()
    for _ in range(MOST_OF_ONE["pending"]):
        today.note("2026-11-22", ("run-1", "ab", "train/pending//"), "pending", "alice")
    assert not today.has_room("2026-11-22", "pending", "alice")


def test_refusals_do_not_stop_an_admission(path: Path, days: Days, make_submission: Make) -> None:
    book = book_of(path, days, is_new=True)
    guard, early = Guard(book, DATASET), make_submission(now=NOW)
    for _ in range(2):
        with pytest.raises(RefusedError):
            guard.admit(early, NOW - timedelta(days=1))
    guard.admit(early, NOW)
    assert [entry.kind for entry in read(path)][3:] == ["refused", "charge"]
