"""Every error that privet raises on purpose, in one tree.

    PrivetError                    exit 1   something failed; `.remedy` says what to do next
    ├── UsageError                 exit 2   what was asked for cannot be meant
    │   ├── PlanError                       a plan that is not one: `.problems`, a line each
    │   ├── PolicyError                     a policy that does not validate: `.problems`, a line each
    │   └── TaskError                       a task that is unknown, or unfit to be trained privately
    ├── RefusedError               exit 3   an institution's rules say no: `.code`
    ├── BudgetError                exit 2   an account or data set that cannot be opened or changed so
    ├── LedgerError                exit 1   a ledger that is damaged, foreign or of another kind
    ├── CheckpointError            exit 1   a checkpoint that is missing, damaged or of another submission
    ├── FederationError            exit 1   a run that cannot go on: too few nodes, or they disagree
    ├── ChannelError               exit 1   a peer or a message that the channel does not let through
    │   └── DatabaseError                   the server's database cannot be asked whether it may
    ├── EnrolmentError             exit 2   a party that cannot be invited, joined, renewed or revoked so
    └── InterruptedRunError        exit 1   stopped by the operator; the state is kept

The message says what happened, with the value and the limit. The remedy is one sentence. Neither ever holds
records, gradients or keys. `ValueError` stays what it is in Python: a programmer's mistake.
"""

from collections.abc import Sequence
from enum import StrEnum


class PrivetError(Exception):
    """Something failed that a person can do something about."""

    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(PrivetError):
    """What was asked for cannot be meant."""

    exit_code = 2


class PlanError(UsageError):
    """A plan that cannot be read or contradicts itself."""

    def __init__(self, problems: Sequence[str], remedy: str) -> None:
        super().__init__("; ".join(problems), remedy)
        self.problems = tuple(problems)


class PolicyError(UsageError):
    """A policy that cannot be read, or speaks of what there is not."""

    def __init__(self, problems: Sequence[str], remedy: str) -> None:
        super().__init__("; ".join(problems), remedy)
        self.problems = tuple(problems)


class TaskError(UsageError):
    """A task that is unknown, fails, or is unfit to be trained privately."""


class Refusal(StrEnum):
    """The closed list of reasons that leave a node: a reply names one, its text stays in the local log."""

    UNKNOWN_TASK = "unknown-task"
    UNKNOWN_DATASET = "unknown-dataset"
    MALFORMED_REQUEST = "malformed-request"
    NOT_SIGNED = "not-signed"
    OPERATOR_NOT_PINNED = "operator-not-pinned"
    OPERATOR_REVOKED = "operator-revoked"
    APP_NOT_ALLOWED = "app-not-allowed"
    PAUSED = "paused"
    WITHDRAWN = "withdrawn"
    POLICY_DENIED = "policy-denied"
    APPROVAL_PENDING = "approval-pending"
    APPROVAL_REFUSED = "approval-refused"
    NOT_VALID_NOW = "not-valid-now"
    OTHER_SUBMISSION = "other-submission"
    UNIT_NOT_OFFERED = "unit-not-offered"
    ACCOUNT_CLOSED = "account-closed"
    BUDGET_EXHAUSTED = "budget-exhausted"
    LEDGER_BEHIND = "ledger-behind"
    DELTA_TOO_LARGE = "delta-too-large"
    EPSILON_ABOVE_CLAIM = "epsilon-above-claim"
    ROUNDS_EXHAUSTED = "rounds-exhausted"
    ATTEMPT_SPENT = "attempt-spent"
    ATTEMPT_MISMATCH = "attempt-mismatch"
    TASK_FAILED = "task-failed"


REFUSAL_CODES = frozenset(refusal.value for refusal in Refusal)


class RefusedError(PrivetError):
    """An institution's own rules say no."""

    exit_code = 3

    def __init__(self, code: Refusal, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.code = code


class BudgetError(PrivetError):
    """An account or a data set that cannot be opened or changed like that."""

    exit_code = 2


class LedgerError(PrivetError):
    """A ledger that is damaged, foreign, or of another kind than this program may open."""


class CheckpointError(PrivetError):
    """A checkpoint that is missing, damaged, or of another submission."""


class FederationError(PrivetError):
    """A run that cannot go on."""


class ChannelError(PrivetError):
    """A certificate, a peer or a message that the channel does not let through."""


class DatabaseError(ChannelError):
    """The server's database cannot be asked at this moment; what it said is for the server's log alone."""


class EnrolmentError(PrivetError):
    """A party that cannot be invited, join, renew or be revoked like that."""

    exit_code = 2


class InterruptedRunError(PrivetError):
    """The operator stopped a run; what was done is kept."""
