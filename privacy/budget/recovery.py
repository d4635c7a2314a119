"""Recovery: after a restored backup, charge what a server's witness remembers and the ledger has forgotten.

The rules:
1. Nothing is appended before everything in the witness file is verified: heads by both signatures, charges by hash and
   signature, all under the institution's own key. A server can neither invent a charge nor alter one.
2. Every charge that was ever signed counts: of one run that was charged before and again after the restore, both.
3. A recovered charge is spent in full and never continued: what of it was carried out is unknown.
4. A charge needs its account. An account that the backup lost too is opened again first, at the same unit; the
   divergence is computed anew for the account's order.
5. Asked twice, the second time changes nothing.
6. Each number up to the witnessed head's is used up, by an entry `lost` where no other took it: two entries of one
   number would be a fork. So the next head is larger than the witnessed one, and is countersigned with its charges.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import BudgetError, LedgerError
from ..submission import Submission
from .accounts import UNITS, AccountBook
from .book import Account, Book
from .charge import charged_events
from .filters import renyi_cost
from .ledger import Entry
from .witness import Head, read_witness

_CHARGES = ("charge", "recovered-charge")
_Identity = tuple[str, str, str]  # run, submission, account


@dataclass(frozen=True, slots=True)
class RecoveredCharge:
    """What was charged again."""

    run: str
    account: str
    unit: str
    relation: str
    epsilon: Decimal
    delta: Decimal


@dataclass(frozen=True, slots=True)
class Recovered:
    """`head`: the newest that the witness holds; `is_behind`: the ledger lacked it."""

    head: Head
    is_behind: bool
    charges: tuple[RecoveredCharge, ...]


def recover(accounts: AccountBook, witness: Path) -> Recovered:
    """Charge what the witness file holds and the ledger lacks, in one transaction.

    Raises LedgerError for a file that is no witness of this institution, BudgetError where an account is missing.
    """
    head, witnessed = _verified(witness, accounts.ledger.key.public)
    with accounts.transaction() as book:
        bodies = [_body(book, charge.content, witness) for charge in _lacking(accounts, witnessed)]
        entry = accounts.ledger.entry(head.sequence)
        is_known = (entry is not None and entry.hash == head.hash) or (head.sequence, head.hash) in book.recovered_heads
        for body in bodies:
            accounts.ledger.append("recovered-charge", body)
        if bodies or not is_known:
            last = accounts.ledger.append("recovered", {"head_sequence": str(head.sequence), "head_hash": head.hash})
            for number in range(last.sequence + 1, head.sequence + 1):
                accounts.ledger.append("lost", {"entry": str(number)})
    accounts.catch_up()
    return Recovered(head, not is_known, tuple(_told(accounts.book, body) for body in bodies))


def _verified(path: Path, public: str) -> tuple[Head, list[Entry]]:
    heads, charges = read_witness(path)
    if not heads:
        raise LedgerError(f"{path}: holds no head of a ledger", _ASK)
    for countersigned in heads:
        if countersigned.head.public_key != public:
            raise LedgerError(f"{path}: witnesses the ledger of another key than this institution's", _ASK)
        if not countersigned.is_signed():
            raise LedgerError(f"{path}: head {countersigned.head.sequence} is not signed by both", _ASK)
    entries = [_entry(path, columns) for columns in charges.values()]
    for entry in entries:
        if not entry.is_whole(entry.sequence, entry.previous, public) or entry.kind not in _CHARGES:
            raise LedgerError(f"{path}: its charge of entry {entry.sequence} is not what this institution wrote", _ASK)
    return max((found.head for found in heads), key=lambda head: head.sequence), entries


def _entry(path: Path, columns: Mapping[str, Any]) -> Entry:
    try:
        entry = Entry(**columns)
    except TypeError:
        raise LedgerError(f"{path}: a charge without all columns of an entry", _ASK) from None
    texts = (entry.time, entry.kind, entry.body, entry.previous, entry.hash, entry.signature)
    if type(entry.sequence) is not int or not all(isinstance(text, str) for text in texts):
        raise LedgerError(f"{path}: a charge whose columns are of the wrong types", _ASK)
    return entry


def _lacking(accounts: AccountBook, witnessed: Iterable[Entry]) -> list[Entry]:
    """The witness's charges, as often as they were signed and are not in the ledger: by entry, or recovered."""
    held: dict[_Identity, set[str]] = defaultdict(set)
    recovered: dict[_Identity, int] = defaultdict(int)
    for entry in accounts.ledger.entries():
        if entry.kind == "charge":
            held[_identity(entry)].add(entry.hash)
        elif entry.kind == "recovered-charge":
            recovered[_identity(entry)] += 1
    signed: dict[_Identity, list[Entry]] = defaultdict(list)
    for entry in sorted(witnessed, key=lambda entry: (entry.kind != "charge", entry.sequence)):
        # A recovered charge in the witness stands for a charge: it counts only where the charge itself is not known.
        if entry.kind == "charge" or not (signed[_identity(entry)] or held[_identity(entry)]):
            signed[_identity(entry)].append(entry)
    lacking = []
    for identity, entries in signed.items():
        missing = [entry for entry in entries if entry.hash not in held[identity]]
        lacking += missing[recovered[identity] :]
    return sorted(lacking, key=lambda entry: entry.sequence)


def _identity(entry: Entry) -> _Identity:
    told = entry.content
    return told["run"], told["submission"], told["account"]


def _body(book: Book, told: Mapping[str, Any], witness: Path) -> dict[str, Any]:
    """The charge as the ledger takes it: the same body, its divergence at the account's own order."""
    account = book.accounts.get(told["account"])
    if account is None:
        raise BudgetError(
            f"{witness}: run {told['run']} was charged to account {told['account']}, which this ledger lacks",
            f"privet budget open {told['account']} with its terms, then recover again",
        )
    _check_unit(account, told)
    return {**told, "divergence": str(_divergence(account, told))}


def _check_unit(account: Account, told: Mapping[str, Any]) -> None:
    if told["unit"] != "none" and UNITS.index(told["unit"]) < UNITS.index(account.unit):
        raise BudgetError(
            f"run {told['run']} was charged per {told['unit']}, account {account.name} protects each {account.unit}",
            f"restore the ledger, and open account {account.name} with --unit {told['unit']}",
        )


def _divergence(account: Account, told: Mapping[str, Any]) -> Decimal:
    submission = Submission.from_bytes(told["plan"].encode())
    if account.alpha is None or submission.claim is None:
        return Decimal(0)
    return renyi_cost(charged_events(submission.plan, submission.claim.noise_multiplier), account.alpha)


def _told(book: Book, body: Mapping[str, Any]) -> RecoveredCharge:
    relation = book.accounts[body["account"]].relation
    return RecoveredCharge(
        body["run"], body["account"], body["unit"], relation, Decimal(body["epsilon"]), Decimal(body["delta"])
    )


_ASK = "ask the coordinator for this node's witness file"
