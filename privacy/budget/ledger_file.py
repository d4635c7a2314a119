"""The file of a ledger: its tables, and how SQLite writes to it. What stands in it is ledger.py's.

A deployment's entry is on the disk when it is appended. A simulation's outlives its process, and a power cut may take
the whole ledger, and with it a rehearsal: otherwise ten thousand simulated nodes would wait for the disk.
"""

import sqlite3
from pathlib import Path
from typing import Literal

from ..errors import LedgerError

Purpose = Literal["simulation", "deployment"]

_SYNCHRONOUS: dict[Purpose, str] = {"deployment": "FULL", "simulation": "OFF"}
_IDLE_CACHE_KIB = 256  # of pages, where ledgers share open files: a request touches a few
_SIMULATED_LOG_PAGES = 32  # of the write-ahead log: pages that are written over cost less than new ones
_LOCK_SECONDS = 60.0  # how long one process waits for another's transaction; each takes milliseconds
_MOST_TRIES = 100  # of turning the write-ahead log on, each after another process has let go
_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL{unique}, signature TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS snapshots (
    sequence INTEGER PRIMARY KEY, hash TEXT NOT NULL, state TEXT NOT NULL, signature TEXT NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON entries WHEN EXISTS
    (SELECT 1 FROM entries WHERE sequence >= NEW.sequence{or_same})
    BEGIN SELECT RAISE(ABORT, 'append-only'); END;  -- INSERT OR REPLACE fires no delete trigger
"""
# A deployment's file also keeps an index of hashes, so that no entry takes the place of one with the same hash. The
# index is half of what a step writes; without it nothing is unique but the number, and nothing else can be replaced.
_SCHEMA: dict[Purpose, str] = {
    "deployment": _TABLES.format(unique=" UNIQUE", or_same=" OR hash = NEW.hash"),
    "simulation": _TABLES.format(unique="", or_same=""),
}


def connected(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection with the ledger's settings; raise LedgerError where the file cannot be opened as a database."""
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            return sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        if not path.is_file():
            raise LedgerError(f"{path}: no such file", "give the ledger's file")
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{path}: not a ledger that can be opened: {error}", RESTORE) from None
    return connection


def settle(connection: sqlite3.Connection, purpose: Purpose, *, is_one_of_many: bool) -> None:
    """What a connection must be told each time. `is_one_of_many`: ledgers that share a number of open files."""
    connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[purpose]}")
    if purpose == "simulation":
        connection.execute(f"PRAGMA wal_autocheckpoint = {_SIMULATED_LOG_PAGES}")
    if is_one_of_many:
        connection.execute(f"PRAGMA cache_size = -{_IDLE_CACHE_KIB}")


def begin(connection: sqlite3.Connection, purpose: Purpose, *, is_one_of_many: bool) -> None:
    """Begin the tables where there are none. Raises sqlite3.Error; another program's database is left as it is."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if tables and "entries" not in tables:
        raise sqlite3.DatabaseError("it belongs to another program")
    settle(connection, purpose, is_one_of_many=is_one_of_many)
    _write_ahead(connection)
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA[purpose]} COMMIT;")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. Where others open the file too, SQLite says `locked` at once instead of waiting: so
    wait for their lock as a writer does, and ask again.
    """
    for _ in range(_MOST_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            connection.executescript("BEGIN IMMEDIATE; ROLLBACK;")
    raise sqlite3.OperationalError("database is locked")


RESTORE = "keep the file as evidence, and restore the ledger from a backup or use another folder"
