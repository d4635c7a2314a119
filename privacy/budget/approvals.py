"""What a person says of a submission that waits: an entry of the ledger, signed by the institution.

Who may say it is whoever may open the ledger; which person spoke for a role is the institution's own order. What was
approved is the submission with its hash: no other plan, and no other run.
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


def say(accounts: AccountBook, run: str, role: str, said: Said, because: str) -> Outcome:
    """Enter what a role says of a run's submission; raise UsageError where nobody asks for it, or it was said before.

    Raises BudgetError for a reason that an entry cannot hold.
    """
    check_text("--because", because)
    with accounts.transaction() as book:
        asked = _asked(book.asked, run, accounts.ledger.now.astimezone(UTC).isoformat())
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


def _asked(asked: Asked, run: str, moment: str) -> Pending:
    """What a person may speak about now."""
    found = asked.by_run.get(run)
    if found is None or found.is_expired_at(moment):
        known = [name for name, one in asked.by_run.items() if not one.is_expired_at(moment)]
        nearest = difflib.get_close_matches(run[:64], known, n=1, cutoff=0.3)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(f"run {run[:64]!r} asks for no approval{hint}", _SEE)
    return found
