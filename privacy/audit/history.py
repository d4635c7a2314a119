"""What a ledger's entries add up to, as the auditor adds them: no code is shared with the book that the guard reads.

Accounts, data sets, runs, refusals, each with the entry and the time that it came from, for claims and report.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from ..submission import Submission
from .bodies import Opened, Refused
from .recomputed import renyi_spent

Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """An account after an entry: `spent` (infinite where void) of `limit`. `run`: whose charge it was."""

    entry: int
    time: str
    spent: Decimal
    limit: Decimal
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Raise:
    """A larger epsilon, and why."""

    entry: int
    time: str
    since: Decimal
    epsilon: Decimal
    because: str


@dataclass(slots=True)
class Account:
    """An account, and what the auditor found spent."""

    name: str
    unit: str
    relation: str
    epsilon: Decimal
    delta: Decimal
    filter: str
    alpha: int | None
    allows_none: bool
    entry: int
    time: str
    spent_epsilon: Decimal = Decimal(0)
    spent_delta: Decimal = Decimal(0)
    spent_divergence: Decimal = Decimal(0)
    voided: int | None = None
    closed: int | None = None
    closed_because: str = ""
    raises: list[Raise] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def epsilon_spent(self) -> Decimal:
        """The epsilon of all charges, at `delta_spent`; infinite where a run without a claim was admitted."""
        if self.voided is not None:
            return Decimal("Infinity")
        if self.alpha is not None:
            return renyi_spent(self.spent_divergence, self.delta, self.alpha)
        return self.spent_epsilon

    @property
    def delta_spent(self) -> Decimal:
        """The delta that belongs to `epsilon_spent`."""
        return self.delta if self.alpha is not None and self.spent_divergence else self.spent_delta

    def mark(self, entry: int, time: str, run: str | None = None) -> None:
        """Remember how the account stands after an entry."""
        self.steps.append(Step(entry, time, self.epsilon_spent, self.epsilon, run))


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set, as declared."""

    name: str
    task: str
    path: str
    declared_size: int
    account: str
    entry: int


@dataclass(frozen=True, slots=True)
class Release:
    """One thing that left the institution: the answer to one request. `hash`: SHA-256 of the answer."""

    entry: int
    time: str
    run: str
    stage: str
    round: int
    attempt: int
    hash: str
    code: str | None
    versions: str | None


@dataclass(frozen=True, slots=True)
class Signed:
    """The operator who signed for a run. `trust`: `pinned` by the institution, or its `coordinator` was believed."""

    entry: int
    operator: str
    key_fingerprint: str
    trust: Literal["pinned", "coordinator"]
    certificate_age_hours: int | None = None  # when it was checked; None where it cannot be read


@dataclass(slots=True)
class Policy:
    """A policy that the institution had, and how many decisions it made."""

    entry: int
    time: str
    hash: str
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy said of a request. `roles`: whose approval a pending one waits for.

    `is_pinned`: whether the institution had pinned the operator's key; `counts_pinned`: whether only parties whose keys
    it had pinned counted towards the cohort, None where no cohort was asked about.
    """

    entry: int
    time: str
    run: str
    submission: str
    operator: str
    action: str
    resource: str
    verdict: str
    rules: tuple[str, ...]
    roles: tuple[str, ...]
    policy: str
    error: str
    is_pinned: bool
    counts_pinned: bool | None


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person said of a submission, and why."""

    entry: int
    time: str
    run: str
    submission: str
    role: str
    verdict: Literal["approved", "refused"]
    because: str


@dataclass(frozen=True, slots=True)
class App:
    """A Flower app that was run: nothing is known of what it read. `signed`: None in a simulation."""

    entry: int
    time: str
    run: str
    app: str
    operator: str
    signed: Signed | None


@dataclass(slots=True)
class Run:
    """A submission that was charged. `submission`: None where its plan could not be read."""

    name: str
    submission_hash: str
    submission: Submission | None
    dataset: str
    declared_size: int
    account: str
    unit: str
    epsilon: Decimal
    delta: Decimal
    divergence: Decimal
    expires: str
    entry: int
    time: str
    accountant: str | None
    signed: Signed | None = None
    is_recovered: bool = False
    released: int | None = None
    begun: dict[Key, str] = field(default_factory=dict)
    answered: set[Key] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: {"train": 0, "evaluate": 0})
    last_time: str = ""
    central: tuple[int, float] | None = None  # of a server's noised rounds: the last one, and the clip norm after it


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt that the institution refused."""

    entry: int
    time: str
    told: Refused


@dataclass(slots=True)
class History:
    """Everything that the ledger says, by name."""

    opening: Opened | None = None
    accounts: dict[str, Account] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)  # offered now
    every_dataset: list[Dataset] = field(default_factory=list)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)  # (path, unit) -> account, for good
    runs: dict[str, Run] = field(default_factory=dict)
    apps: dict[str, App] = field(default_factory=dict)  # by run
    releases: list[Release] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    policies: dict[str, Policy] = field(default_factory=dict)  # by hash
    decisions: list[Decision] = field(default_factory=list)
    permissions: dict[str, Decision] = field(default_factory=dict)  # by run: what permitted its charge
    approvals: list[Approval] = field(default_factory=list)
    recovered: Counter[tuple[str, str]] = field(default_factory=Counter)  # (run, submission) of recovered charges
    recovered_heads: set[tuple[int, str]] = field(default_factory=set)
    server_keys: dict[str, int] = field(default_factory=dict)  # key -> first entry that shows it
