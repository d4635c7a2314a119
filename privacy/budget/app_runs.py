"""Runs of Flower apps that make no claim: entered, so that an audit names them; nothing is charged.

What an app read is not accounted for. A run id is admitted once, for an app or for a task. The policy is asked at every
request; what it permits is entered with the admission, and not again.
"""

from datetime import datetime

from ..errors import Refusal, RefusedError
from ..plan_app import AppSubmission
from .accounts import AccountBook
from .book import Book
from .decisions import Asker, Case, Decide
from .refusals import step
from .signer import Signer


def admit_app(
    accounts: AccountBook,
    submission: AppSubmission,
    now: datetime,
    signer: Signer | None = None,
    decide: Decide | None = None,
) -> None:
    """Enter that the app is run, once; raise RefusedError where it may not be run now, with an entry of that alone.

    `signer`: who signed the submission; None in a simulation, and where the run was admitted before. `decide`: asks
    the institution's policy. That the institution allowed the app by name was checked before.
    """
    with step(accounts, submission) as book:
        known = "another submission" if submission.run_id in book.runs else book.apps.get(submission.run_id)
        if known not in (None, submission.hash):
            raise RefusedError(
                Refusal.OTHER_SUBMISSION,
                f"run {submission.run_id} was admitted with another submission",
                "submit the plan as a new run",
            )
        _check_time(submission, now)
        asker = signer.asker if signer else _known_asker(book, submission)
        decided = decide(Case(submission, "runApp", asker, now, book)) if decide else None
        if known is None:
            for kind, body in decided.entries() if decided else ():
                accounts.ledger.append(kind, body)
            if signer is not None:
                accounts.ledger.append("operator", signer.body(submission))
            accounts.ledger.append("app", _body(submission))
    accounts.note_progress()


def _known_asker(book: Book, submission: AppSubmission) -> Asker:
    known = book.signer_of(submission.run_id, submission.hash)
    return Asker(submission.body.operator, known.key_fingerprint if known else "")


def _check_time(submission: AppSubmission, now: datetime) -> None:
    if not submission.is_valid_at(now):
        raise RefusedError(
            Refusal.NOT_VALID_NOW,
            f"the submission is valid from {submission.body.not_before} to {submission.body.expires}",
            "submit the plan again, and check both clocks",
        )


def _body(submission: AppSubmission) -> dict[str, str]:
    return {
        "run": submission.run_id,
        "submission": submission.hash,
        "plan": submission.canonical.decode(),
        "app": submission.plan.app.name,
    }
