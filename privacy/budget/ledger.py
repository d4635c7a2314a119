"""Ledger: an institution's append-only record of what was charged and done. SQLite; the event list is the truth.

Each entry holds its number, time, kind, body (canonical JSON, numbers as strings), the previous entry's hash, its own
(SHA-256 over all of that) and the institution's signature of it (Ed25519). Triggers refuse every update and delete,
and `verified` finds what was changed around them. The first entry says what the ledger is for and whose key signs it:
a simulation's is never opened by a deployment, nor the other way round. An append is durable when it returns (WAL,
full sync).

Reading begins at the last snapshot: a signed note of the institution to itself that everything up to an entry was
verified, and what it adds up to. An auditor ignores snapshots and starts at the first entry (`audit/replay.py`).

A ledger put back to an older copy of itself is consistent: only a witness shows it (`witness.py`). Under a running
process it shows: what was read once must still be there whenever the file is read on.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from ..errors import LedgerError
from .canonical import canonical
from .keys import SigningKey, Verify, is_signed
from .ledger_file import RESTORE as RESTORE
from .ledger_file import Purpose as Purpose
from .ledger_file import begin, settle
from .ledger_file import connected as connected
from .open_ledgers import OpenLedgers

FORMAT = "1"
Body = Mapping[str, "str | Sequence[Mapping[str, str]]"]
Clock = Callable[[], datetime]

GENESIS = "0" * 64
CHARGES = ("charge", "recovered-charge")  # the kinds of entries that a witness keeps
ENTRY, SNAPSHOT = "ledger-entry", "ledger-snapshot"  # purposes of signatures
# Entries after which a snapshot is due: a reader then verifies at most about so many, at some 130 microseconds each.
SNAPSHOT_EVERY = 2048
_READ = "SELECT sequence, time, kind, body, previous, hash, signature FROM entries "
_SEQUENCE, _HASH = 0, 5  # where they stand in what it reads
_TEXTS = frozenset({str})  # a body of these alone is read back as it was written


def system_clock() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, as it stands in the file."""

    sequence: int
    time: str
    kind: str
    body: str
    previous: str
    hash: str
    signature: str

    @property
    def content(self) -> dict[str, Any]:
        """The body, read."""
        content: dict[str, Any] = json.loads(self.body)
        return content

    def expected_hash(self) -> str:
        """SHA-256 over every other column but the signature, hexadecimal."""
        return _hash_of(self.sequence, self.time, self.kind, self.body, self.previous).hex()

    def is_whole(self, sequence: int, previous: str, public: str, verify: Verify = is_signed) -> bool:
        """Whether it is the entry that belongs here, unchanged, and signed by the holder of the key."""
        columns = (self.time, self.kind, self.body, self.previous, self.hash, self.signature)
        return (
            all(isinstance(column, str) for column in columns)
            and self.sequence == sequence
            and self.previous == previous
            and self.hash == self.expected_hash()
            and verify(public, ENTRY, bytes.fromhex(self.hash), self.signature)
        )


class Ledger:
    """An open ledger. One writer at a time, whatever the number of processes; use it from one thread.

    `among`: with which other ledgers it shares a number of open files; without one its file stays open.
    """

    def __init__(
        self, path: Path, purpose: Purpose, key: SigningKey, clock: Clock, among: OpenLedgers | None = None
    ) -> None:
        self.path = path
        self.key = key
        self._purpose = purpose
        self._clock = clock
        self._among = among
        self._is_closed = False
        self._opened: sqlite3.Connection | None = connected(path)
        self._busy: sqlite3.Connection | None = None  # the same, while a transaction lasts
        self._left: tuple[int, str] = (0, GENESIS)  # the newest entry when the file was let go of: number and hash
        self._end: tuple[int, str] | None = None  # the newest entry, while a transaction lasts and where it is known
        # Of a simulation: the newest entry after the last transaction, and SQLite's version of the file then.
        self._known: tuple[tuple[int, str] | None, int] | None = None
        self._appended: list[tuple[Entry, dict[str, Any]]] = []  # by the transaction under way, with what it says
        if among is not None:
            among.used(self)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        purpose: Purpose,
        owner: str,
        key: SigningKey,
        clock: Clock = system_clock,
        among: OpenLedgers | None = None,
    ) -> Self:
        """The ledger at `path`, begun if there is none. What it says is verified by who reads it (`AccountBook`).

        Raises LedgerError when it is not a ledger, of a newer format, or of another purpose, owner or key.
        """
        ledger = cls(path, purpose, key, clock, among)
        try:
            ledger._begin()
            with ledger.transaction():
                if ledger.head() is None:
                    opening = {"format": FORMAT, "purpose": purpose, "owner": owner, "public_key": key.public}
                    ledger.append("opened", opening)
            ledger._check_opening(owner)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is one durable step, and no other process writes meanwhile.

        Raises LedgerError when the file cannot be written (a full disk, a lock that is not let go); nothing was then.
        """
        try:
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            self._busy, known = connection, self._known
            self._known = None
            try:
                version = self._version()
                if known is not None and known[1] == version:
                    self._end = known[0]  # nobody else has written since
                yield
                connection.execute("COMMIT")
                self._known = (self._end, version) if version is not None else None
            except BaseException:
                if connection.in_transaction:  # SQLite has ended it already where the disk is full
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._end, self._busy, self._appended = None, None, []
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written: {error}", _ROOM) from None

    def _version(self) -> int | None:
        """Another one as soon as another connection has written. A deployment does without, and always looks."""
        if self.is_deployment or self._busy is None:
            return None
        version: int = self._busy.execute("PRAGMA data_version").fetchone()[0]
        return version

    def append(self, kind: str, body: Body) -> Entry:
        """Add an entry; inside a transaction it is durable at its end."""
        if self._busy is None:
            with self.transaction():
                return self.append(kind, body)
        last, previous = self._end or _place(self.head())
        moment = _moment_text(self._clock().astimezone(UTC))
        told: dict[str, Any] = dict(body)
        text = canonical(told).decode()
        digest = _hash_of(last + 1, moment, kind, text, previous)
        row = (last + 1, moment, kind, text, previous, digest.hex(), self.key.sign(ENTRY, digest))
        self._busy.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        entry = Entry(*row)
        self._end = (entry.sequence, entry.hash)
        self._appended.append((entry, told if _TEXTS.issuperset(map(type, told.values())) else entry.content))
        return entry

    def appended(self, after: int) -> list[tuple[Entry, dict[str, Any]]]:
        """What the transaction under way has added behind a number: each entry, and its body as it would be read."""
        if not self._appended or self._appended[-1][0].sequence <= after:
            return []
        return [(entry, told) for entry, told in self._appended if entry.sequence > after]

    @property
    def is_deployment(self) -> bool:
        """Whether it is of an institution's own records, as its first entry says."""
        return self._purpose == "deployment"

    @property
    def now(self) -> datetime:
        """The time that an entry would have."""
        return self._clock()

    @property
    def today(self) -> str:
        """The day that an entry would be of, in UTC."""
        return self.now.astimezone(UTC).date().isoformat()

    def head(self) -> Entry | None:
        """The newest entry."""
        row = self._connection.execute(_READ + "ORDER BY sequence DESC LIMIT 1").fetchone()
        return Entry(*row) if row else None

    def entry(self, sequence: int) -> Entry | None:
        """The entry of that number."""
        row = self._connection.execute(_READ + "WHERE sequence = ?", (sequence,)).fetchone()
        return Entry(*row) if row else None

    def entries(self, after: int = 0, kinds: Sequence[str] = ()) -> Iterator[Entry]:
        """All entries in order, or those that follow a sequence number, or those of some kinds among them."""
        chosen = f"AND kind IN ({', '.join('?' * len(kinds))}) " if kinds else ""
        try:
            rows = self._connection.execute(f"{_READ}WHERE sequence > ? {chosen}ORDER BY sequence", (after, *kinds))
            for row in rows:
                yield Entry(*row)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def verified(self, after: int = 0, previous: str = GENESIS) -> Iterator[Entry]:
        """The entries after a number and its hash; raise LedgerError naming the first that is wrong.

        That may be the one of that number: whoever has read it once reads on from there and no other place.
        """
        if self._end == (after, previous):  # found in this transaction, or after the last and not changed since
            return
        last = after
        try:
            rows = self._connection.execute(f"{_READ}WHERE sequence >= ? ORDER BY sequence", (max(after, 1),))
            if after:
                row = rows.fetchone()
                if row is None or (row[_SEQUENCE], row[_HASH]) != (after, previous):
                    raise self._spoilt(after)
            for row in rows:
                entry, last = Entry(*row), last + 1
                if not entry.is_whole(last, previous, self.key.public, self.key.is_signed):
                    raise self._spoilt(last)
                previous = entry.hash
                yield entry
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        if self._busy is not None:  # nobody writes meanwhile
            self._end = (last, previous)

    def _unreadable(self, error: sqlite3.Error) -> LedgerError:
        return LedgerError(f"{self.path}: cannot be read: {error}", RESTORE)

    def _spoilt(self, sequence: int) -> LedgerError:
        return LedgerError(f"{self.path}: entry {sequence} is not what this institution wrote", RESTORE)

    def snapshot(self) -> tuple[int, str, str] | None:
        """The newest snapshot that this institution signed and that the entries bear out: sequence, hash, state."""
        row = self._connection.execute("SELECT * FROM snapshots ORDER BY sequence DESC LIMIT 1").fetchone()
        if row is None:
            return None
        sequence, digest, state, signature = row
        entry = self.entry(sequence)
        signed = self.key.is_signed(self.key.public, SNAPSHOT, _snapshot_message(sequence, digest, state), signature)
        return (sequence, digest, state) if signed and entry and entry.hash == digest else None

    def save_snapshot(self, sequence: int, state: str) -> None:
        """Note that everything up to an entry was verified and adds up to `state`. Takes the place of earlier notes."""
        entry = self.entry(sequence)
        if entry is None:
            raise ValueError(f"there is no entry {sequence}")
        signature = self.key.sign(SNAPSHOT, _snapshot_message(sequence, entry.hash, state))
        with self.transaction():
            self._connection.execute("DELETE FROM snapshots")
            self._connection.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)", (sequence, entry.hash, state, signature)
            )

    def close(self) -> None:
        """Let go of the file; the last to do so folds the write-ahead log into it, so that one file is the ledger."""
        self._is_closed, self._busy = True, None
        if self._among is not None:
            self._among.forget(self)
        if self._opened is not None:
            self._opened.close()

    def let_go(self) -> bool:
        """Close the file until something is asked; False where a transaction is under way. See OpenLedgers."""
        if self._opened is None or self._opened.in_transaction:
            return False
        self._left = _place(self.head())
        self._opened.close()
        self._opened = self._known = None
        return True

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._busy is not None:
            return self._busy
        if self._is_closed:
            raise LedgerError(f"{self.path}: it was closed", "open it again")
        if self._among is not None:
            self._among.used(self)
        if self._opened is None:
            self._opened = self._reopened()
        return self._opened

    def _reopened(self) -> sqlite3.Connection:
        """The file again; raises LedgerError where it has lost what it held when it was let go of."""
        connection = connected(self.path)
        try:
            settle(connection, self._purpose, is_one_of_many=self._among is not None)
            row = connection.execute(_READ + "WHERE sequence = ?", (self._left[0],)).fetchone()
            if self._left[0] and _place(Entry(*row) if row else None) != self._left:
                raise self._spoilt(self._left[0])
        except sqlite3.Error as error:
            connection.close()
            raise LedgerError(f"{self.path}: not a ledger that can be opened: {error}", RESTORE) from None
        except LedgerError:
            connection.close()
            raise
        return connection

    def _begin(self) -> None:
        try:
            begin(self._connection, self._purpose, is_one_of_many=self._among is not None)
            self._connection.execute(_READ + "LIMIT 1")
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: not a ledger that can be opened: {error}", RESTORE) from None

    def _check_opening(self, owner: str) -> None:
        purpose = self._purpose
        opening = next(self.entries(), None)
        try:
            content = dict(opening.content) if opening and opening.kind == "opened" else {}
        except (ValueError, TypeError):
            raise LedgerError(f"{self.path}: entry 1 is not what this institution wrote", RESTORE) from None
        if content.get("format") != FORMAT:
            raise LedgerError(f"{self.path}: a ledger of format {content.get('format')}, not {FORMAT}", _NEWER)
        if (content.get("purpose"), content.get("owner")) != (purpose, owner):
            raise LedgerError(
                f"{self.path}: the {content.get('purpose')} ledger of {content.get('owner')}, "
                f"not the {purpose} ledger of {owner}",
                "give the ledger of this node, or another folder",
            )
        if content.get("public_key") != self.key.public:
            raise LedgerError(
                f"{self.path}: signed by another key than this institution's", "restore ledger and key together"
            )


def _moment_text(moment: datetime) -> str:
    """As `isoformat(timespec="milliseconds")` writes a moment in UTC."""
    second = _second_text(moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)
    return f"{second}.{moment.microsecond // 1000:03d}+00:00"


@lru_cache(maxsize=4)  # a second has many entries, and the system's formatting costs a fifth of a signature
def _second_text(*parts: int) -> str:
    year, month, day, hour, minute, second = parts
    return datetime(year, month, day, hour, minute, second).isoformat()


def _hash_of(sequence: int, time: str, kind: str, body: str, previous: str) -> bytes:
    return hashlib.sha256(canonical([str(sequence), time, kind, body, previous])).digest()


def _place(entry: Entry | None) -> tuple[int, str]:
    """Number and hash of an entry; of none, what the first one follows."""
    return (entry.sequence, entry.hash) if entry else (0, GENESIS)


def _snapshot_message(sequence: int, digest: str, state: str) -> bytes:
    return f"{sequence}/{digest}/{hashlib.sha256(state.encode()).hexdigest()}".encode()


_NEWER = "open it with the version of privet that wrote it, or a newer one"
_ROOM = "make the disk writable and free, then ask again; nothing was changed"
