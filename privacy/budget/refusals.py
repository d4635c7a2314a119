"""Refusals: each is entered in the ledger, and none lets a stranger fill it.

The rules:
1. What is refused in a step is entered in that step: a denial's facts are those of the entries before it, and nobody
   writes between. What is refused in a step has entered nothing before, but what had expired.
2. Of one run, submission and code one refusal a day is entered, and of one operator, and of all strangers together, so
   many (refused_today.py): whoever asks again and again learns the code again and again, and the node's local log says
   the rest.
"""

import contextlib
from collections.abc import Iterator

from ..errors import Refusal, RefusedError
from ..plan_app import AnySubmission, AppSubmission
from .accounts import AccountBook
from .book import Book, refused_as
from .decisions import DeniedError
from .refused_today import kind_of


@contextlib.contextmanager
def step(accounts: AccountBook, submission: AnySubmission) -> Iterator[Book]:
    """One durable step on the newest book. A RefusedError inside is entered, and raised when that is durable.

    Whoever enters anything in it has checked everything before.
    """
    refused: RefusedError | None = None
    with accounts.transaction() as book:
        try:
            yield book
        except RefusedError as refusal:
            refused = refusal
            _enter(accounts, submission, refusal)
    if refused is not None:
        raise refused


def record_refusal(accounts: AccountBook, submission: AnySubmission, refusal: RefusedError) -> None:
    """Enter why a submission was refused before anything was decided on the ledger's facts; once a day."""
    with accounts.transaction():
        _enter(accounts, submission, refusal)


def _enter(accounts: AccountBook, submission: AnySubmission, refusal: RefusedError) -> None:
    """With the policy's decision, where it was that."""
    if isinstance(refusal, DeniedError):
        _enter_denial(accounts, submission, refusal)
    book, today = accounts.catch_up(), accounts.ledger.today
    code, operator = refusal.code.value, submission.body.operator
    is_new = not book.refused.has(today, (submission.run_id, submission.hash, code))
    if is_new and book.refused.has_room(today, kind_of(code), operator):
        told = {
            "run": submission.run_id,
            "submission": submission.hash,
            "operator": operator,
            "code": code,
            "why": refusal.message,
        }
        accounts.ledger.append("refused", _subject(submission) | told)


def _enter_denial(accounts: AccountBook, submission: AnySubmission, denial: DeniedError) -> None:
    book, today, body = accounts.catch_up(), accounts.ledger.today, denial.decided.body
    is_pending = body["verdict"] == "pending"
    is_new = not book.refused.has(today, (submission.run_id, submission.hash, refused_as(body)))
    # It is entered again where the policy had forbidden it meanwhile: or nobody could answer to it.
    is_asked = denial.code is not Refusal.APPROVAL_PENDING or book.asked.is_asked_about(
        submission.run_id, submission.hash
    )
    operator = str(body["operator"])
    if (is_new or not is_asked) and book.refused.has_room(today, "pending" if is_pending else "denied", operator):
        for kind, content in denial.decided.entries():
            accounts.ledger.append(kind, content)


def _subject(submission: AnySubmission) -> dict[str, str]:
    if isinstance(submission, AppSubmission):
        return {"app": submission.plan.app.name}
    return {"dataset": submission.plan.dataset}
