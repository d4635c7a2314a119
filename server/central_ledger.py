"""The server's own ledger, for runs that hide whole nodes: there the server adds the noise, so there it is accounted.

Charge before touching: a run is charged in full, all its rounds, before the first; each round is entered before a node
is asked, and what was done before its result is used. It is the guard that an institution has too
(privacy/budget/guard.py), with the nodes as the population and one noised sum as an answer.

A round that was begun before a crash is done again, with the same noise: its result must be the same, or it would be a
second release. Nothing about single nodes is entered: who took part is a secret (central.py, rule 5).
"""

from collections.abc import Mapping
from datetime import datetime

from ..privacy.budget.accounts import AccountBook
from ..privacy.budget.guard import Attempt, Guard, Standing
from ..privacy.errors import FederationError
from ..privacy.submission import Submission


class CentralLedger:
    """The rounds of one submission in the server's ledger. `dataset`: under which name the nodes are declared there."""

    def __init__(self, accounts: AccountBook, submission: Submission, dataset: str) -> None:
        self._accounts = accounts
        self._submission = submission
        self._guard = Guard(accounts, dataset)
        self._attempts: dict[int, Attempt] = {}

    @property
    def nodes(self) -> int:
        """How many nodes there are, as declared: public."""
        return self._guard.dataset.declared_size

    def admit(self, now: datetime) -> None:
        """Charge the run in full, once; raise RefusedError where the account cannot pay for it."""
        self._guard.admit(self._submission, now)

    def begin(self, round_number: int, asked: str) -> None:
        """Enter a round, durably; one that was begun before must be asked alike."""
        attempt = self._attempts[round_number] = Attempt("train", round_number, 1, asked)
        run = self._accounts.catch_up().runs.get(self._submission.run_id)
        if run is None or run.begun.get(attempt.key) != asked:
            self._guard.begin(self._submission, attempt)

    def answered(self, round_number: int, released: str, done: Mapping[str, str]) -> None:
        """Enter what a round released. Of one that was done before, raise FederationError unless it is the same."""
        attempt = self._attempts[round_number]
        before = self._accounts.catch_up().runs[self._submission.run_id].answered.get(attempt.key)
        if before is None:
            self._guard.answered(self._submission, attempt, released, done)
        elif before != released:
            raise FederationError(
                f"round {round_number} gave another result before the interruption: two cost more than was charged",
                "resume where the run was begun, with the same versions, or begin a new run",
            )

    def standing(self) -> Standing:
        """What the run was charged, and what of it has begun."""
        return self._guard.standing(self._submission)

    def close(self) -> None:
        """Let go of the ledger."""
        self._guard.close()
