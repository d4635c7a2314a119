"""Ledger: an institution's append-only record of what was charged and done. SQLite; the event list is the truth.

Each entry holds its number, time, kind, body (canonical JSON, numbers as strings), the previous entry's hash and its
own (SHA-256). Triggers refuse every update, delete and replacement, and `verify` finds what was changed around them.
The first entry says what the ledger is for: a simulation's is never opened by a deployment, nor the other way round.
An append is durable when it returns (WAL with full sync).

Not yet here: signatures, and a witness at the server. Until then the chain shows damage, not a rewrite by someone who
computes it anew, and not a ledger that was cut at its end or put back to an older copy.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import rfc8785

from ..errors import LedgerError

FORMAT = "1"
Purpose = Literal["simulation", "deployment"]
Body = Mapping[str, "str | list[dict[str, str]]"]
Clock = Callable[[], datetime]

_GENESIS = "0" * 64
_LOCK_SECONDS = 60.0  # how long one process waits for another's transaction; each takes milliseconds
_MOST_TRIES = 100  # of turning the write-ahead log on, each after another process has let go
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON entries WHEN EXISTS
    (SELECT 1 FROM entries WHERE sequence >= NEW.sequence OR hash = NEW.hash)
    BEGIN SELECT RAISE(ABORT, 'append-only'); END;  -- INSERT OR REPLACE fires no delete trigger
"""
_READ = "SELECT sequence, time, kind, body, previous, hash FROM entries "


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

    @property
    def content(self) -> dict[str, str]:
        """The body, read."""
        content: dict[str, str] = json.loads(self.body)
        return content

    def expected_hash(self) -> str:
        """SHA-256 over every other column, hexadecimal."""
        return hashlib.sha256(
            rfc8785.dumps([str(self.sequence), self.time, self.kind, self.body, self.previous])
        ).hexdigest()

    def is_whole(self) -> bool:
        """Whether all columns are what was hashed."""
        texts = (self.time, self.kind, self.body, self.previous, self.hash)
        return all(isinstance(text, str) for text in texts) and self.hash == self.expected_hash()


class Ledger:
    """An open ledger. One writer at a time, whatever the number of processes; use it from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Clock) -> None:
        self.path = path
        self._connection = connection
        self._clock = clock

    @classmethod
    def open(cls, path: Path, *, purpose: Purpose, owner: str, clock: Clock = system_clock) -> Self:
        """The ledger at `path`, begun if there is none; verified if there is one.

        Raises LedgerError when it is not a ledger, damaged, of a newer format, or of another purpose or owner.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{path}: cannot be opened: {error}", _RESTORE) from None
        ledger = cls(path, connection, clock)
        try:
            ledger._prepare()
            ledger.verify()
            with ledger.transaction():
                if ledger.head() is None:
                    ledger.append("opened", {"format": FORMAT, "purpose": purpose, "owner": owner})
            ledger._check_opening(purpose, owner)
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
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has ended it already where the disk is full
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written: {error}", _MAKE_ROOM) from None

    def append(self, kind: str, body: Body) -> Entry:
        """Add an entry; inside a transaction it is durable at its end."""
        if not self._connection.in_transaction:
            with self.transaction():
                return self.append(kind, body)
        head = self.head()
        sequence, previous = (head.sequence + 1, head.hash) if head else (1, _GENESIS)
        moment = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        entry = Entry(sequence, moment, kind, rfc8785.dumps(dict(body)).decode(), previous, "")
        entry = Entry(sequence, moment, kind, entry.body, previous, entry.expected_hash())
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            (entry.sequence, entry.time, entry.kind, entry.body, entry.previous, entry.hash),
        )
        return entry

    def head(self) -> Entry | None:
        """The newest entry."""
        row = self._connection.execute(_READ + "ORDER BY sequence DESC LIMIT 1").fetchone()
        return Entry(*row) if row else None

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """All entries in order, or those that follow a sequence number."""
        try:
            for row in self._connection.execute(_READ + "WHERE sequence > ? ORDER BY sequence", (after,)):
                yield Entry(*row)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be read: {error}", _RESTORE) from None

    def verify(self) -> None:
        """Check numbering, chain and every hash; raise LedgerError naming the first entry that is wrong."""
        previous = _GENESIS
        for sequence, entry in enumerate(self.entries(), start=1):
            if entry.sequence != sequence or entry.previous != previous or not entry.is_whole():
                raise LedgerError(f"{self.path}: entry {sequence} is not what was written", _RESTORE)
            previous = entry.hash

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _prepare(self) -> None:
        """Begin the file, or find in it the columns that were begun; another program's database is left as it is."""
        try:
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if tables and "entries" not in tables:
                raise sqlite3.DatabaseError("it belongs to another program")
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            self._connection.execute(_READ + "LIMIT 1")
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: not a ledger that can be opened: {error}", _RESTORE) from None

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on. Where others open the file too, SQLite says `locked` at once instead of waiting:
        so wait for their lock as a writer does, and ask again.
        """
        for _ in range(_MOST_TRIES):
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                self._connection.executescript("BEGIN IMMEDIATE; ROLLBACK;")
        raise sqlite3.OperationalError("database is locked")

    def _check_opening(self, purpose: Purpose, owner: str) -> None:
        opening = next(self.entries())
        expected = {"format": FORMAT, "purpose": purpose, "owner": owner}
        if opening.kind != "opened" or opening.content != expected:
            raise LedgerError(
                f"{self.path}: it was opened as {opening.body}, not as the {purpose} ledger of {owner}",
                "give the ledger of this node, or another folder",
            )


_MAKE_ROOM = "make room on the disk, or end the process that holds the ledger, and try again"
_RESTORE = "keep the file as evidence, and restore the ledger from a backup or use another folder"
