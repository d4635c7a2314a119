"""The witness, checked: every head that the server countersigned must stand in the ledger, with its hash.

A ledger put back to an older copy of itself is consistent; only this shows it. After `privet budget recover` the heads
of the lost branch may be missing, as long as every charge that the witness holds is in the ledger.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..budget.keys import is_signed
from ..budget.ledger import ENTRY, Entry
from ..budget.witness import COUNTERSIGNED, Countersigned, Head, read_witness
from ..errors import LedgerError
from .bodies import Charged, MalformedBodyError, Witnessed, read_body
from .history import History
from .violations import Findings

# Bytes of a witness file: some 500 a head, 4 KiB a charge. Above this it is not one.
LARGEST_WITNESS = 2**30
# What a deployment's ledger is opened with, before the institution has a name in a federation.
UNNAMED = "institution"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class WitnessFound:
    """What a witness file says. `sequence`: the last entry that it bears out, 0 for none."""

    server_key: str | None
    heads: int
    charges: int
    sequence: int


class WitnessAuditor:
    """Checks countersignatures inside the ledger as they come, and the witness file at the end.

    `public`: the institution's key. A head names its node; a deployment's ledger is opened before the node has a name,
    so that the witness file tells it.
    """

    def __init__(self, path: Path | None, history: History, findings: Findings) -> None:
        self._history, self._findings = history, findings
        self._heads, self._charges = _read(path) if path else ([], {})
        self._is_given = path is not None
        self._lost: Counter[tuple[str, str]] = Counter()
        self._names = list(dict.fromkeys(head.head.owner for head in self._heads if _is_well_formed(head)))

    def entry(self, number: int, body: Witnessed, hashes: Mapping[int, str]) -> None:
        """A countersignature that the institution kept: it must be of an entry before it."""
        opening, is_recovered = self._history.opening, (body.sequence, body.hash) in self._history.recovered_heads
        if opening is None:
            return
        if not is_recovered and (hashes.get(body.sequence) != body.hash or body.sequence >= number):
            self._findings.add(number, "witness-entry", f"entry {body.sequence} is not what was countersigned")
        if not any(self._is_countersigned(name, opening.public_key, body) for name in (opening.owner, *self._names)):
            if opening.owner == UNNAMED and not self._names:
                self._findings.note("the countersignatures in the ledger name a node that only a witness file can tell")
            else:
                why = f"the server's signature of entry {body.sequence} does not hold"
                self._findings.add(number, "witness-entry", why)
        if body.server_key not in self._history.server_keys and self._history.server_keys:
            self._findings.note(f"entry {number} shows another server key than before: {body.server_key[:16]}…")
        self._history.server_keys.setdefault(body.server_key, number)

    def finish(self, hashes: Mapping[int, str], public: str | None) -> WitnessFound | None:
        """Compare the witness file, if there is one, with the whole ledger."""
        if not self._is_given:
            return None
        recovered_to = max((sequence for sequence, _ in self._history.recovered_heads), default=0)
        server_keys: set[str] = set()
        borne_out = 0
        for countersigned in self._heads:
            head = countersigned.head
            if not _is_well_formed(countersigned) or not countersigned.is_signed():
                self._findings.add(None, "witness-signature", "a head in the witness file is not signed by both sides")
                continue
            server_keys.add(countersigned.server_key)
            if not self._is_of_this_ledger(head, public):
                continue
            if hashes.get(head.sequence) == head.hash:
                borne_out = max(borne_out, head.sequence)
            elif head.sequence <= recovered_to:
                why = "was witnessed and lost; what it charged must be recovered from the witness"
                self._findings.note(f"entry {head.sequence} {why}")
            else:
                self._missing(head, max(hashes, default=0))
        self._check_keys(server_keys)
        for charge in self._charges.values():
            self._check_charge(charge, hashes, public)
        return WitnessFound(next(iter(server_keys), None), len(self._heads), len(self._charges), borne_out)

    def _is_countersigned(self, name: str, public: str, body: Witnessed) -> bool:
        message = Head(name, public, body.sequence, body.hash, "").message()
        return is_signed(body.server_key, COUNTERSIGNED, message, body.server_signature)

    def _is_of_this_ledger(self, head: Head, public: str | None) -> bool:
        opening = self._history.opening
        owner = opening.owner if opening else "nobody"
        if opening is not None and head.public_key == public and owner in (UNNAMED, head.owner):
            return True
        why = f"the witness saw the ledger of {head.owner}, key {head.public_key[:16]}…; this one is of {owner}"
        self._findings.add(None, "replaced", why)
        return False

    def _missing(self, head: Head, last: int) -> None:
        if head.sequence > last:
            why = f"rolled back or truncated: the ledger ends at entry {last}, and entry {head.sequence} was witnessed"
            self._findings.add(last, "truncated", why)
        else:
            self._findings.add(head.sequence, "forked", "another entry was witnessed under this number")

    def _check_keys(self, server_keys: set[str]) -> None:
        if len(server_keys) > 1 or len(set(self._names)) > 1:
            why = f"the witness file has {len(server_keys)} server keys and {len(self._names)} nodes, not one of each"
            self._findings.add(None, "witness-key", why)
        if self._history.server_keys and server_keys and not server_keys <= set(self._history.server_keys):
            self._findings.note("the ledger holds countersignatures by another server key than the witness file's")

    def _check_charge(self, columns: Mapping[str, object], hashes: Mapping[int, str], public: str | None) -> None:
        """A charge that the institution signed and told the witness: it stands in the ledger, or was recovered."""
        entry = _signed_entry(columns, public)
        if entry is None:
            self._findings.add(None, "witness-signature", "a charge in the witness file is not this institution's")
            return
        if hashes.get(entry.sequence) == entry.hash:
            return
        try:
            charge = read_body("charge", entry.body)
        except MalformedBodyError:
            charge = None
        if not isinstance(charge, Charged):
            self._findings.add(None, "lost-charge", "a witnessed charge that cannot be read is not in the ledger")
            return
        identity = (charge.run, charge.submission)
        if entry.kind == "charge":
            # Charged before a restore and again after it: both were spent, so each needs a recovered charge of its own.
            self._lost[identity] += 1
            is_spent = self._lost[identity] <= self._history.recovered[identity]
        else:
            is_spent = charge.run in self._history.runs
        if not is_spent:
            why = f"run {charge.run}: its charge was witnessed, and is not in the ledger"
            self._findings.add(None, "lost-charge", why)


def _read(path: Path) -> tuple[list[Countersigned], dict[str, dict[str, object]]]:
    remedy = "give the witness file of this node"
    if not path.is_file():
        raise LedgerError(f"{path}: no such file", remedy)
    if path.stat().st_size > LARGEST_WITNESS:
        raise LedgerError(f"{path}: {path.stat().st_size} bytes, a witness file has at most {LARGEST_WITNESS}", remedy)
    try:
        heads, charges = read_witness(path)
    except (RecursionError, AttributeError, KeyError) as error:
        raise LedgerError(f"{path}: not a witness file: {error}", remedy) from None
    if not all(isinstance(charge, dict) for charge in charges.values()):
        raise LedgerError(f"{path}: not a witness file: a charge that is none", remedy)
    if not heads:
        raise LedgerError(f"{path}: no head of a ledger in it", remedy)
    return heads, charges


def _is_well_formed(countersigned: Countersigned) -> bool:
    head = countersigned.head
    texts = (head.owner, head.public_key, head.hash, head.signature)
    server = (countersigned.server_key, countersigned.server_signature)
    if not all(isinstance(text, str) for text in (*texts, *server)) or type(head.sequence) is not int:
        return False
    is_hex = all(_HEX.issuperset(text) for text in (*texts[1:], *server))
    return is_hex and head.owner.isprintable() and 0 < head.sequence < 2**53


def _signed_entry(columns: Mapping[str, object], public: str | None) -> Entry | None:
    texts = {name: columns.get(name) for name in ("time", "kind", "body", "previous", "hash", "signature")}
    sequence = columns.get("sequence")
    if type(sequence) is not int or not all(isinstance(text, str) for text in texts.values()) or public is None:
        return None
    entry = Entry(sequence, *(str(text) for text in texts.values()))
    try:
        is_ours = entry.hash == entry.expected_hash()
    except ValueError:  # a text that is not UTF-8, a number that JSON cannot say exactly
        return None
    return entry if is_ours and is_signed(public, ENTRY, bytes.fromhex(entry.hash), entry.signature) else None
