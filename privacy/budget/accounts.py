"""AccountBook: an institution's accounts and data sets, kept in step with its ledger. Every change is an entry.

The rules:
1. An account is opened once; its unit, relation, delta and filter never change. A raise states a new, larger epsilon.
2. A data set (its real path, at a unit) belongs to exactly one account, so that nobody is protected by a fresh budget.
3. A data set that was charged is removed from the offer only: its account keeps what was spent.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..errors import BudgetError
from ..plan import NAME_PATTERN
from .book import Account, Book, DeclaredDataset
from .events import RELATION, Events
from .filters import FilterName, best_alpha, renyi_limit
from .ledger import CHARGES, GENESIS, SNAPSHOT_EVERY, Entry, Ledger

UNITS = ("record", "group", "node")  # from the weakest to the strongest
LARGEST_SIZE = 2**40
LARGEST_EPSILON = Decimal(1000)
SMALLEST_DELTA = Decimal("1e-100")  # far below any use, and a double without loss
_LATEST = 16  # entries: a request's few, until the server's countersignature comes with the next
LARGEST_TEXT = 1000  # characters of a reason or a path: an entry is a line


@dataclass(frozen=True, slots=True)
class AccountTerms:
    """What an account is opened with; raise BudgetError for terms that cannot be meant.

    `typical`: events of a plan to choose a renyi filter's order by.
    """

    unit: str
    epsilon: Decimal
    delta: Decimal
    filter: FilterName = "additive"
    typical: Events = ()
    allows_none: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise BudgetError(f"unit {self.unit!r} is not one of {', '.join(UNITS)}", "--unit record")
        if not 0 < self.epsilon <= LARGEST_EPSILON:
            raise BudgetError(f"epsilon {self.epsilon}, allowed are above 0 to {LARGEST_EPSILON}", "--epsilon 10")
        if not SMALLEST_DELTA <= self.delta < 1:
            raise BudgetError(f"delta {self.delta}, allowed are {SMALLEST_DELTA} and above, below 1", "--delta 1e-4")
        if self.filter == "renyi" and not self.typical:
            raise BudgetError(
                "a renyi filter needs a typical plan to choose its order by", "--typical PLAN, or --filter additive"
            )


class AccountBook:
    """The book of one ledger. Call `catch_up` before reading it: another process may have written.

    `last_charge`: the number of the newest charge that was read, or a later one.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._is_alone = False  # inside a transaction, and everything before it was read
        self._latest: deque[tuple[int, str]] = deque(maxlen=_LATEST)  # number and hash of what was read last
        self._load()

    def _load(self) -> None:
        snapshot = self.ledger.snapshot()
        self.book = Book.load(snapshot[2]) if snapshot else Book()
        self._seen, self._hash = (snapshot[0], snapshot[1]) if snapshot else (0, GENESIS)
        self._snapped = self.last_charge = self._seen
        self._latest.clear()
        self.catch_up()

    def catch_up(self) -> Book:
        """Read and verify what was appended since the last look, by this process or another.

        Raises LedgerError naming the first entry that this institution did not write. What the transaction under way
        has appended is taken in as it was written.
        """
        if self._is_alone:
            for entry, content in self.ledger.appended(self._seen):
                self._take(entry, content)
        else:
            for entry in self.ledger.verified(self._seen, self._hash):
                self._take(entry, entry.content)
        return self.book

    def _take(self, entry: Entry, content: Mapping[str, Any]) -> None:
        self.book.apply(entry.kind, content, entry.time)
        self._seen, self._hash = entry.sequence, entry.hash
        self._latest.append((entry.sequence, entry.hash))
        if entry.kind in CHARGES:
            self.last_charge = entry.sequence

    def newest(self) -> tuple[int, str]:
        """Number and hash of the newest entry of all, this process's or another's."""
        self.catch_up()
        return self._seen, self._hash

    def has(self, sequence: int, digest: str) -> bool:
        """Whether the entry of this number has this hash."""
        if (sequence, digest) in self._latest:
            return True
        entry = self.ledger.entry(sequence)
        return entry is not None and entry.hash == digest

    @contextmanager
    def transaction(self) -> Iterator[Book]:
        """One durable step, on the newest book. Where it fails, memory forgets what it took in of it too."""
        try:
            with self.ledger.transaction():
                self.catch_up()
                self._is_alone = True  # nobody else writes until it ends
                try:
                    yield self.book
                    self.catch_up()
                finally:
                    self._is_alone = False
        except BaseException:
            entry = self.ledger.entry(self._seen)
            if entry is None or entry.hash != self._hash:
                self._load()
            raise

    def note_progress(self) -> None:
        """Write a snapshot where one is due, so that the next opening is quick. Outside of transactions."""
        if self._seen - self._snapped >= SNAPSHOT_EVERY:
            self.ledger.save_snapshot(self._seen, self.book.dump())
            self._snapped = self._seen

    def open_account(self, name: str, terms: AccountTerms) -> Account:
        """Open an account; raise BudgetError for a name that is taken."""
        body = _account_body(name, terms)
        with self.transaction():
            self._check_free_account(name)
            self.ledger.append("account", body)
        return self.catch_up().accounts[name]

    def open_with_dataset(self, terms: AccountTerms, dataset: DeclaredDataset) -> DeclaredDataset:
        """Open the data set's account and declare the data set in it: both, or neither."""
        body = _account_body(dataset.account, terms)
        check_declaration(dataset)
        with self.transaction():
            self._check_free_account(dataset.account)
            self._check_free_dataset(dataset, terms.unit)
            self.ledger.append("account", body)
            self.ledger.append("dataset", _dataset_body(dataset))
        return self.catch_up().datasets[dataset.name]

    def raise_account(self, name: str, epsilon: Decimal, because: str) -> Account:
        """State a larger epsilon, with its reason: a new claim, which covers what was decided after seeing results."""
        check_text("--because", because)
        with self.transaction():
            account = self._account(name)
            if account.is_closed:
                raise BudgetError(f"account {name} is closed", "open another account")
            if not account.epsilon < epsilon <= LARGEST_EPSILON:
                raise BudgetError(
                    f"account {name} has epsilon {account.epsilon}; {epsilon} is no larger one up to {LARGEST_EPSILON}",
                    "give a larger epsilon",
                )
            body = {"account": name, "epsilon": str(epsilon), "from": str(account.epsilon), "because": because}
            self.ledger.append("raise", body)
        return self.catch_up().accounts[name]

    def close_account(self, name: str, because: str) -> Account:
        """End an account, with the reason: it admits nothing more."""
        check_text("--because", because)
        with self.transaction():
            if self._account(name).is_closed:
                raise BudgetError(f"account {name} is closed already", f"privet budget show {name}")
            self.ledger.append("close", {"account": name, "because": because})
        return self.catch_up().accounts[name]

    def add_dataset(self, dataset: DeclaredDataset) -> DeclaredDataset:
        """Declare a data set, once; raise BudgetError where its path, at this unit, belongs to another account."""
        check_declaration(dataset)
        with self.transaction():
            self._check_free_dataset(dataset, self._account(dataset.account).unit)
            self.ledger.append("dataset", _dataset_body(dataset))
        return self.catch_up().datasets[dataset.name]

    def remove_dataset(self, name: str) -> None:
        """Take a data set from the offer. What it was charged stays."""
        with self.transaction():
            if name not in self.catch_up().datasets:
                raise BudgetError(f"no data set {name}", "privet dataset list")
            self.ledger.append("dataset-removed", {"dataset": name})
        self.catch_up()

    def _account(self, name: str) -> Account:
        account = self.catch_up().accounts.get(name)
        if account is None:
            known = ", ".join(self.book.accounts) or "none"
            raise BudgetError(f"no account {name}; open: {known}", "privet budget open ACCOUNT")
        return account

    def _check_free_account(self, name: str) -> None:
        if name in self.catch_up().accounts:
            raise BudgetError(
                f"account {name} is open already",
                f"privet budget show {name}; a data set joins it with --account {name}, and without --epsilon",
            )

    def _check_free_dataset(self, dataset: DeclaredDataset, unit: str) -> None:
        """One path, one account at a unit: also when it was removed, and comes back under another name."""
        if dataset.name in self.book.datasets:
            raise BudgetError(f"data set {dataset.name} is declared already", "privet dataset list")
        for path, owned_unit, owner in self.book.owners:
            if (path, owned_unit) == (dataset.path, unit) and owner != dataset.account:
                raise BudgetError(
                    f"{path} belongs to account {owner} at unit {unit}, for good",
                    f"declare it with --account {owner}",
                )


def check_declaration(dataset: DeclaredDataset) -> None:
    """Raise BudgetError for a data set that cannot be meant: its name, its size, its path."""
    check_name("data set", dataset.name)
    check_name("account", dataset.account)
    check_text("--path", dataset.path)
    if not 1 <= dataset.declared_size <= LARGEST_SIZE:
        raise BudgetError(f"declared size {dataset.declared_size}, allowed are 1 to 2^40", "give the number of records")


def check_text(what: str, text: str) -> None:
    """Raise BudgetError for a text that an entry cannot hold: empty, too long, or not printable."""
    if not text.strip() or len(text) > LARGEST_TEXT or not text.isprintable():
        raise BudgetError(f"{what}: not a line of 1 to {LARGEST_TEXT} printable characters", f'{what} "…", in one line')


def check_name(what: str, name: str) -> None:
    """Raise BudgetError for a name that is none."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise BudgetError(
            f"{what} {name!r}: a name has lower-case letters, digits, dots and dashes", "give another name"
        )


def _account_body(name: str, terms: AccountTerms) -> dict[str, str]:
    check_name("account", name)
    body = {
        "account": name,
        "unit": terms.unit,
        "relation": RELATION,
        "epsilon": str(terms.epsilon),
        "delta": str(terms.delta),
        "filter": terms.filter,
        "allows_none": "yes" if terms.allows_none else "no",
    }
    return body | ({"alpha": str(_alpha(terms))} if terms.filter == "renyi" else {})


def _dataset_body(dataset: DeclaredDataset) -> dict[str, str]:
    return {
        "dataset": dataset.name,
        "task": dataset.task,
        "path": dataset.path,
        "declared_size": str(dataset.declared_size),
        "account": dataset.account,
    }


def _alpha(terms: AccountTerms) -> int:
    alpha = best_alpha(terms.typical, terms.epsilon, terms.delta)
    if renyi_limit(terms.epsilon, terms.delta, alpha) <= 0:
        raise BudgetError(
            f"a renyi filter of epsilon {terms.epsilon} at delta {terms.delta} admits nothing", "--filter additive"
        )
    return alpha
