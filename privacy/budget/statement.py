"""Statement: what an account has spent, reserved and left, run by run, and what was refused. Read from the ledger.

`epsilon` of a run is what was charged and is enforced; `epsilon_executed` is the PLD of what began, if the schedule was
fixed in advance. The two are never mixed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ..submission import Submission
from .accounting import epsilon_of, rounded_up
from .accounts import AccountBook
from .book import INFINITE, Account, RunCharge
from .charge import executed_events
from .filters import renyi_epsilon, renyi_limit

Charged = tuple[str, Mapping[str, Any], RunCharge]  # when, the entry's body, what became of it
Watched = Callable[[Sequence[Charged]], Iterable[Charged]]


@dataclass(frozen=True, slots=True)
class RunStatement:
    """One charge. `epsilon_executed`: None where no claim is made, or where what was executed is unknown."""

    run: str
    plan: str
    operator: str
    dataset: str
    unit: str
    epsilon: Decimal
    delta: Decimal
    epsilon_executed: Decimal | None
    rounds_begun: int
    rounds_charged: int
    evaluations_begun: int
    evaluations_charged: int
    state: str
    charged_at: str
    expires: str


@dataclass(frozen=True, slots=True)
class RefusalStatement:
    """What was asked and not admitted, or not carried out."""

    time: str
    run: str
    operator: str
    dataset: str
    code: str
    why: str


@dataclass(frozen=True, slots=True)
class AccountStatement:
    """An account, as it stands. `runs_left`: how many more like the last would be admitted; None without a last."""

    account: Account
    datasets: tuple[str, ...]
    epsilon_reserved: Decimal
    delta_reserved: Decimal
    runs: tuple[RunStatement, ...]
    refusals: tuple[RefusalStatement, ...]
    raises: tuple[Mapping[str, str], ...]
    runs_left: int | None

    @property
    def epsilon_spent(self) -> Decimal:
        """Charged, and begun."""
        return self.account.epsilon_spent - self.epsilon_reserved if not self.account.is_void else INFINITE

    @property
    def delta_spent(self) -> Decimal:
        """What goes with it: charged and begun under `additive`, the account's own under `renyi`."""
        if self.account.filter == "renyi":
            return self.account.delta
        return self.account.spent_delta - self.delta_reserved


@dataclass(slots=True)
class _Records:
    """What the ledger says about one account, entry by entry."""

    charges: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    refusals: list[RefusalStatement] = field(default_factory=list)
    raises: list[Mapping[str, str]] = field(default_factory=list)


def statements(
    accounts: AccountBook, now: datetime, only: str | None = None, watched: Watched = iter
) -> Iterable[AccountStatement]:
    """Every account's statement, or one's, in the order of their opening.

    `watched` passes charges on, one by one: each costs a PLD, some 50 milliseconds, and somebody may want to count.
    """
    book = accounts.catch_up()
    records = _records(accounts)
    for account in book.accounts.values():
        if only is None or account.name == only:
            yield _statement(accounts, account, records.get(account.name, _Records()), now, watched)


def release_expired(accounts: AccountBook, now: datetime) -> None:
    """Forget, in memory alone, what never began and has expired: the next admission does so in the ledger."""
    for run in list(accounts.book.runs.values()):
        if _is_expired(run, now):
            accounts.book.apply("release", {"run": run.run})


def delta_left(account: Account) -> Decimal:
    """What of delta may still be charged; a renyi filter has one delta for everything."""
    return account.delta if account.filter == "renyi" else max(Decimal(0), account.delta - account.spent_delta)


def _records(accounts: AccountBook) -> dict[str, _Records]:
    """One reading of the ledger. A refusal names a data set: it goes to the account that the set was in then."""
    found: dict[str, _Records] = {}
    owner: dict[str, str] = {}
    for entry in accounts.ledger.entries():
        if entry.kind not in ("account", "dataset", "charge", "recovered-charge", "raise", "refused"):
            continue
        told = entry.content
        if entry.kind == "account":
            found[told["account"]] = _Records()
        elif entry.kind == "dataset":
            owner[told["dataset"]] = told["account"]
        elif entry.kind == "raise":
            found[told["account"]].raises.append(
                {name: told[name] for name in ("from", "epsilon", "because")} | {"time": entry.time}
            )
        elif entry.kind == "refused":
            if told.get("dataset") in owner:  # an app has none
                found[owner[told["dataset"]]].refusals.append(_refusal(entry.time, told))
        else:
            found[told["account"]].charges.append((entry.time, told))
    return found


def _refusal(time: str, told: Mapping[str, str]) -> RefusalStatement:
    return RefusalStatement(time, told["run"], told["operator"], told["dataset"], told["code"], told["why"])


def _statement(
    accounts: AccountBook, account: Account, records: _Records, now: datetime, watched: Watched
) -> AccountStatement:
    book = accounts.book
    reserved = [run for run in book.runs.values() if run.account == account.name and _is_reserved(run)]
    charges = [(time, told, book.runs[told["run"]]) for time, told in records.charges]
    return AccountStatement(
        account=account,
        datasets=tuple(found.name for found in book.datasets.values() if found.account == account.name),
        epsilon_reserved=_epsilon_reserved(account, reserved),
        delta_reserved=sum((run.delta for run in reserved), Decimal(0)) if account.alpha is None else Decimal(0),
        runs=tuple(_run(time, told, run, now) for time, told, run in watched(charges)),
        refusals=tuple(records.refusals),
        raises=tuple(records.raises),
        runs_left=_runs_left(account, [run for _, _, run in charges if run.epsilon.is_finite()]),
    )


def _is_reserved(run: RunCharge) -> bool:
    return not (run.begun or run.is_released or run.is_recovered) and run.epsilon.is_finite()


def _is_expired(run: RunCharge, now: datetime) -> bool:
    return _is_reserved(run) and run.expires <= now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epsilon_reserved(account: Account, reserved: Iterable[RunCharge]) -> Decimal:
    if account.is_void:
        return Decimal(0)
    if account.filter == "renyi" and account.alpha is not None:
        without = account.spent_divergence - sum((run.divergence for run in reserved), Decimal(0))
        return account.epsilon_spent - renyi_epsilon(without, account.delta, account.alpha)
    return sum((run.epsilon for run in reserved), Decimal(0))


def _run(time: str, told: Mapping[str, Any], run: RunCharge, now: datetime) -> RunStatement:
    submission = Submission.from_bytes(told["plan"].encode())
    plan, claim = submission.plan, submission.claim
    rounds, evaluations = run.count("train"), run.count("evaluate")
    executed = None
    if claim is not None and plan.privacy.delta is not None and not run.is_recovered:
        events = executed_events(plan, claim.noise_multiplier, rounds, evaluations)
        executed = rounded_up(epsilon_of(events, plan.privacy.delta))
    return RunStatement(
        run=told["run"],
        plan=plan.run.name,
        operator=submission.body.operator,
        dataset=told["dataset"],
        unit=told["unit"],
        epsilon=Decimal(told["epsilon"]),
        delta=Decimal(told["delta"]),
        epsilon_executed=executed,
        rounds_begun=rounds,
        rounds_charged=plan.attempts_charged,
        evaluations_begun=evaluations,
        evaluations_charged=plan.evaluations_charged,
        state=_state(run, rounds + evaluations, plan.attempts_charged + plan.evaluations_charged, now),
        charged_at=time,
        expires=told["expires"],
    )


def _state(run: RunCharge, begun: int, charged: int, now: datetime) -> str:
    if run.is_recovered:
        return "recovered from a witness"
    if run.is_released:
        return "released, never began"
    if not begun:
        return "expired, never began" if _is_expired(run, now) else "reserved"
    return "all begun" if begun >= charged else "begun"


def _runs_left(account: Account, charged: list[RunCharge]) -> int | None:
    if account.is_void or account.is_closed:
        return 0
    if not charged:
        return None
    last = charged[-1]
    if account.filter == "renyi" and account.alpha is not None:
        limit = renyi_limit(account.epsilon, account.delta, account.alpha)
        return _times(limit - account.spent_divergence, last.divergence)
    return min(
        _times(account.epsilon - account.spent_epsilon, last.epsilon),
        _times(account.delta - account.spent_delta, last.delta),
    )


def _times(left: Decimal, each: Decimal) -> int:
    return max(0, math.floor(left / each)) if each else 0
