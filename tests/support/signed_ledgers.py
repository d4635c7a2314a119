"""Ledgers with a key file beside them, as a simulated node has; and a data set declared in an account of them."""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import cast

from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Clock, Entry, Ledger, Purpose, system_clock

ACCOUNT, DATASET = "records", "synthetic"
# Far above what any test spends; and a plan without a claim is admitted.
WIDE = AccountTerms("record", Decimal(1000), Decimal("0.5"), allows_none=True)
DECLARED = ["opened", "account", "dataset"]  # the kinds of the entries of `declared`


def key_of(ledger: Path) -> SigningKey:
    """The key beside a ledger, made if there is none."""
    return SigningKey.load_or_create(ledger.with_suffix(".pem"))


def opened(
    path: Path,
    purpose: str = "simulation",
    owner: str = "node-1",
    *,
    key: SigningKey | None = None,
    now: datetime | None = None,
) -> Ledger:
    """The ledger, begun if there is none. `now`: where its clock stands still."""
    clock: Clock = (lambda: now) if now else system_clock
    return Ledger.open(path, purpose=cast(Purpose, purpose), owner=owner, key=key or key_of(path), clock=clock)


def read(path: Path, purpose: str = "simulation", owner: str = "node-1") -> list[Entry]:
    """What is durable, as another process finds and verifies it."""
    ledger = opened(path, purpose, owner)
    try:
        return list(ledger.verified())
    finally:
        ledger.close()


def declared(ledger: Ledger, terms: AccountTerms = WIDE, size: int = 100) -> AccountBook:
    """The ledger's accounts, after one was opened with a data set of the task `synthetic`."""
    accounts = AccountBook(ledger)
    accounts.open_with_dataset(terms, DeclaredDataset(DATASET, "synthetic", "/data", size, ACCOUNT))
    return accounts


def guard_of(ledger: Ledger) -> Guard:
    """The guard of what was declared, as after a restart."""
    return Guard(AccountBook(ledger), DATASET)
