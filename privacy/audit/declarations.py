"""Declarations, checked: opening, accounts, data sets. Terms never change, raises go up, a path has one account."""

from ..budget.filters import ALPHAS
from .bodies import AccountOpened, Closed, DatasetAdded, DatasetRemoved, Opened, Raised
from .history import Account, Dataset, History, Raise
from .violations import Findings


class DeclarationAuditor:
    """Checks what the institution declared, and adds it to the history."""

    def __init__(self, history: History, findings: Findings) -> None:
        self._history = history
        self._findings = findings

    def opened(self, entry: int, body: Opened, given: str | None) -> None:
        """What the ledger is for, and whose. `given`: the key that the auditor was handed."""
        if self._history.opening is not None or entry != 1:
            self._findings.add(entry, "opening", "the ledger was opened before, or not in its first entry")
        if self._history.opening is None:
            self._history.opening = body
        if given is not None and body.public_key != given:
            why = f"the ledger names key {body.public_key[:16]}…, the key given is {given[:16]}…"
            self._findings.add(entry, "other-key", why)

    def account(self, entry: int, time: str, body: AccountOpened) -> None:
        """An account."""
        if body.account in self._history.accounts:
            self._findings.add(entry, "account", f"account {body.account} is open already")
            return
        if not body.epsilon > 0 or not 0 < body.delta < 1:
            self._findings.add(entry, "account", f"epsilon {body.epsilon} at delta {body.delta} bounds nothing")
        is_renyi = body.filter == "renyi"
        if is_renyi != (body.alpha is not None) or (is_renyi and body.alpha not in ALPHAS):
            self._findings.add(entry, "account", f"filter {body.filter} with order {body.alpha}")
        alpha = body.alpha if is_renyi and body.alpha in ALPHAS and 0 < body.delta < 1 else None
        account = Account(
            name=body.account,
            unit=body.unit,
            relation=body.relation,
            epsilon=body.epsilon,
            delta=body.delta,
            filter=body.filter,
            alpha=alpha,
            allows_none=body.allows_none == "yes",
            entry=entry,
            time=time,
        )
        self._history.accounts[body.account] = account
        account.mark(entry, time)

    def raised(self, entry: int, time: str, body: Raised) -> None:
        """A larger epsilon: upwards only, from what it was."""
        account = self._account(entry, body.account)
        if account is None:
            return
        if account.closed is not None:
            self._findings.add(entry, "account", f"account {account.name} was closed in entry {account.closed}")
        if body.since != account.epsilon:
            why = f"a raise from {body.since}; account {account.name} has epsilon {account.epsilon}"
            self._findings.add(entry, "account", why)
        if body.epsilon <= account.epsilon:
            why = f"a raise of account {account.name} from {account.epsilon} to {body.epsilon} is none"
            self._findings.add(entry, "account", why)
        if not body.because.strip():
            self._findings.add(entry, "account", f"a raise of account {account.name} without a reason")
        account.raises.append(Raise(entry, time, account.epsilon, body.epsilon, body.because))
        account.epsilon = body.epsilon
        account.mark(entry, time)

    def closed(self, entry: int, time: str, body: Closed) -> None:
        """The end of an account."""
        account = self._account(entry, body.account)
        if account is None:
            return
        account.closed, account.closed_because = account.closed or entry, body.because
        account.mark(entry, time)

    def dataset(self, entry: int, body: DatasetAdded) -> None:
        """A data set."""
        account = self._account(entry, body.account)
        if body.dataset in self._history.datasets:
            self._findings.add(entry, "dataset", f"data set {body.dataset} is declared already")
        if body.declared_size < 1:
            self._findings.add(entry, "dataset", f"declared size {body.declared_size}")
        declared = Dataset(body.dataset, body.task, body.path, body.declared_size, body.account, entry)
        self._history.datasets[body.dataset] = declared
        self._history.every_dataset.append(declared)
        if account is None:
            return
        owner = self._history.owners.setdefault((body.path, account.unit), account.name)
        if owner != account.name:
            why = f"{body.path} belongs to account {owner} at unit {account.unit}, and may not have a second account"
            self._findings.add(entry, "dataset", why)

    def dataset_removed(self, entry: int, body: DatasetRemoved) -> None:
        """A data set, taken from the offer."""
        if self._history.datasets.pop(body.dataset, None) is None:
            self._findings.add(entry, "dataset", f"there is no data set {body.dataset} to remove")

    def _account(self, entry: int, name: str) -> Account | None:
        account = self._history.accounts.get(name)
        if account is None:
            self._findings.add(entry, "account", f"account {name} is not open")
        return account
