"""Refusals: each is entered in the ledger, and none lets a stranger fill it.

Of one run, submission and code one refusal a day is entered, and of all together at most `MOST_REFUSALS`: whoever asks
again and again learns the code again and again, and the node's local log says the rest.
"""

from ..errors import Refusal, RefusedError
from ..plan_app import AnySubmission, AppSubmission
from .accounts import AccountBook
from .book import Book, refused_as
from .decisions import DeniedError

MOST_REFUSALS = 1000  # entries a day, some 600 kB


def record_refusal(accounts: AccountBook, submission: AnySubmission, refusal: RefusedError) -> None:
    """Enter why a submission was refused, with the policy's decision where it was that; once a day."""
    subject = (
        {"app": submission.plan.app.name}
        if isinstance(submission, AppSubmission)
        else {"dataset": submission.plan.dataset}
    )
    with accounts.transaction() as book:
        today = book.refused_on(accounts.ledger.today)
        if isinstance(refusal, DeniedError) and len(today) < MOST_REFUSALS:
            key = (submission.run_id, submission.hash, refused_as(refusal.decided.body))
            if key not in today or not _is_asked_about(book, refusal):
                for kind, body in refusal.decided.entries():
                    if kind != "policy" or body["hash"] not in book.policies:
                        accounts.ledger.append(kind, body)
                today = accounts.catch_up().refused_on(accounts.ledger.today)
        if (submission.run_id, submission.hash, refusal.code.value) not in today and len(today) < MOST_REFUSALS:
            accounts.ledger.append(
                "refused",
                subject
                | {
                    "run": submission.run_id,
                    "submission": submission.hash,
                    "operator": submission.body.operator,
                    "code": refusal.code.value,
                    "why": refusal.message,
                },
            )
    accounts.catch_up()


def _is_asked_about(book: Book, refusal: DeniedError) -> bool:
    """Whether a person can answer to it; else it is entered again: the policy had forbidden it meanwhile."""
    is_pending = refusal.code is Refusal.APPROVAL_PENDING
    body = refusal.decided.body
    return not is_pending or book.asked.is_asked_about(str(body["run"]), str(body["submission"]))
