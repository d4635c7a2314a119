"""The chain: every row in its place, following the one before it, unchanged, signed, and not older than the one before.

After a violation the walk goes on with what the file holds, so that one change shows as one or two violations.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime

from ..budget.keys import is_signed
from ..budget.ledger import ENTRY, GENESIS, Entry
from .bodies import canonical
from .reading import LedgerFile, Unreadable
from .violations import Findings

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")  # exactly: `bytes.fromhex` would also take capitals and spaces
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", re.ASCII)


class Chain:
    """One walk along a ledger. `public`: the key that must have signed; None: the one that the first entry names."""

    def __init__(self, file: LedgerFile, public: str | None, findings: Findings) -> None:
        self._file = file
        self._findings = findings
        self.public = public
        self.hashes: dict[int, str] = {}
        self.head: Entry | None = None
        self._newest = ""

    def entries(self) -> Iterator[Entry]:
        """Every readable row, in order, its place in the chain checked. Its content may say anything."""
        expected, previous = 1, GENESIS
        for row in self._file.rows():
            if row.sequence != expected:
                self._findings.add(row.sequence, "numbering", _misnumbered(expected, row.sequence))
            expected = row.sequence + 1
            if isinstance(row, Unreadable):
                self._findings.add(row.sequence, "unreadable", row.why)
                previous = ""
                continue
            self._check(row, previous)
            previous = row.hash
            self.hashes[row.sequence] = row.hash
            self.head = row
            yield row

    def _check(self, entry: Entry, previous: str) -> None:
        if previous and entry.previous != previous:
            self._findings.add(
                entry.sequence, "previous", f"it follows {entry.previous[:12]}…, and {previous[:12]}… stands before it"
            )
        digest = _digest(entry)
        if entry.hash != digest:
            self._findings.add(entry.sequence, "hash", "it was changed after it was written")
        self._check_signature(entry, digest)
        self._check_time(entry)

    def _check_signature(self, entry: Entry, digest: str) -> None:
        """Over what the row holds, so that a repaired hash does not repair the signature."""
        if self.public is None:
            return  # there is no opening to take a key from; that is a violation of its own
        if not _SIGNATURE.fullmatch(entry.signature) or not is_signed(
            self.public, ENTRY, bytes.fromhex(digest), entry.signature
        ):
            self._findings.add(entry.sequence, "signature", f"not signed by {self.public[:16]}…")

    def _check_time(self, entry: Entry) -> None:
        try:
            if not _TIME.fullmatch(entry.time):
                raise ValueError("not a time")
            datetime.fromisoformat(entry.time)
        except ValueError:
            self._findings.add(entry.sequence, "malformed", "its time is not one")
            return
        if entry.time < self._newest:
            self._findings.add(entry.sequence, "clock-set-back", f"clock set back: {entry.time} follows {self._newest}")
        self._newest = entry.time


def _digest(entry: Entry) -> str:
    content = [str(entry.sequence), entry.time, entry.kind, entry.body, entry.previous]
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _misnumbered(expected: int, found: int) -> str:
    if found > expected:
        missing = f"entry {expected} is" if found == expected + 1 else f"entries {expected} to {found - 1} are"
        return f"{missing} missing before it"
    return f"it is repeated or out of order: entry {expected} belongs here"
