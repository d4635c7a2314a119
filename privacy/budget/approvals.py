"""What a person says of a submission that waits: an entry of the ledger, signed by the institution.

Who may say it is whoever may open the ledger; which person spoke for a role is the institution's own order. What was
approved is the submission with its hash: no other plan, and no other run. Where several submissions of one run id are
known, the word names which it is about: an operator may send another plan after the one that was shown.
"""

import difflib
from dataclasses import dataclass
from datetime import UTC

from ..errors import UsageError
from .accounts import AccountBook, check_text
from .asked import Asked, Pending, Said

_SEE = "privet node pending"
_DONE = {"approved": "approved", "refused": "rejected"}  # a person rejects; the code that leaves says refused


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a submission stands after somebody has spoken.

    `missing`: whose approval it lacks; `refusers`: who refused it.
    """

    asked: Pending
    missing: tuple[str, ...]
    refusers: tuple[str, ...]


def say(accounts: AccountBook, run: str, role: str, said: Said, because: str, submission: str = "") -> Outcome:
    """Enter what a role says of a run's submission; raise UsageError where nobody asks for it, or it was said before.

    `submission`: how its hash begins; needed where several of this run id are known. Raises BudgetError for a reason
    that an entry cannot hold.
    """
    check_text("--because", because)
    with accounts.transaction() as book:
        asked = asked_about(accounts, run, submission)
        if role not in asked.roles:
            raise UsageError(
                f"run {run} asks for no {role[:64]!r}; asked for: {', '.join(asked.roles)}",
                f"--as {asked.roles[0]}",
            )
        if book.approvals.get(asked.submission, {}).get(role) == said:
            raise UsageError(f"{role} has {_DONE[said]} run {run} already", _SEE)
        body = {"run": run, "submission": asked.submission, "role": role, "verdict": said, "because": because}
        accounts.ledger.append("approval", body)
    after = accounts.catch_up().asked
    return Outcome(asked, after.missing(asked), after.refusers(asked))


def asked_about(accounts: AccountBook, run: str, submission: str = "") -> Pending:
    """What a person speaks about; raise UsageError where that is nothing that can be approved now, or not clear."""
    asked, moment = accounts.catch_up().asked, accounts.ledger.now.astimezone(UTC).isoformat()
    known = asked.of_run(run)
    named = [one for one in known if one.submission.startswith(submission)]
    if len(named) > 1:
        hashes = ", ".join(short(one) for one in named)
        raise UsageError(
            f"run {run} was asked for with {len(named)} submissions: {hashes}",
            f"{_SEE} shows their plans; name one with --submission",
        )
    if known and not named:
        raise UsageError(f"run {run} was asked for with no submission {submission[:64]!r}", _SEE)
    if not named or named[0].is_expired_at(moment):
        raise UsageError(f"run {run[:64]!r} asks for no approval{_nearest(asked, run, moment)}", _SEE)
    return named[0]


def short(asked: Pending) -> str:
    """The submission's hash, as far as a person types it."""
    return asked.submission[:_TYPED]


def _nearest(asked: Asked, run: str, moment: str) -> str:
    known = [name for (name, _), one in asked.open.items() if not one.is_expired_at(moment) and name != run]
    nearest = difflib.get_close_matches(run[:64], known, n=1, cutoff=0.3)
    return f"; did you mean {nearest[0]}?" if nearest else ""


_TYPED = 16  # of 64 hexadecimal digits: nobody finds two plans that share them by chance
