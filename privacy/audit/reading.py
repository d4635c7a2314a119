"""Reading a ledger's file that may be hostile: row by row, read-only, trusting neither schema, type nor length.

SQLite is told not to hand out a cell above `LARGEST_CELL`, so that no row can fill the memory, and only a plain table
is read: a view could compute for ever. The whole reading is one transaction: a ledger that is in use is read as it
stood.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..budget.ledger import RESTORE, Entry, connected
from ..errors import LedgerError

# Bytes of one row. The largest entry is a policy: 256 KiB, each of them escaped with six more at worst.
LARGEST_CELL = 2 * 1024 * 1024
_COLUMNS = ("sequence", "time", "kind", "body", "previous", "hash", "signature")
_ROW = f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE rowid = ?"
_LARGEST_NUMBER = 2**53


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no entry."""

    sequence: int
    why: str


class LedgerFile:
    """The rows of a ledger's file, in order."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self.count = int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    def rows(self) -> Iterator[Entry | Unreadable]:
        """Every row; raise LedgerError where the file itself is damaged."""
        read = self._connection.cursor()
        for place, number in self._connection.execute("SELECT rowid, sequence FROM entries ORDER BY sequence"):
            try:
                row = read.execute(_ROW, (place,)).fetchone()
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorname", "") != "SQLITE_TOOBIG":
                    raise _damaged(self._path, error) from None
                yield Unreadable(number if isinstance(number, int) else 0, f"larger than {LARGEST_CELL} bytes")
            else:
                yield _entry(row)


@contextmanager
def opened(path: Path) -> Iterator[LedgerFile]:
    """The ledger's file, for reading; raise LedgerError where it is not one."""
    connection = _connected(path)
    try:
        connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_CELL)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN")
        _check_schema(path, connection)
        yield LedgerFile(path, connection)
    except (sqlite3.Error, UnicodeError) as error:
        raise _damaged(path, error) from None
    finally:
        connection.close()


def _connected(path: Path) -> sqlite3.Connection:
    if path.is_dir():
        raise LedgerError(f"{path}: a directory", "give the ledger's file")
    try:
        return connected(path, read_only=True)
    except LedgerError:
        # On a medium that cannot be written SQLite cannot share a file in WAL mode; alone, it can read it.
        if not path.is_file() or path.with_name(path.name + "-wal").exists():
            raise
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise _damaged(path, error) from None
    return connection


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    found = connection.execute("SELECT type, sql FROM sqlite_master WHERE name = 'entries'").fetchall()
    columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo('entries')").fetchall()
    is_plain = [kind for kind, sql in found if kind == "table" and str(sql).upper().startswith("CREATE TABLE")]
    if len(is_plain) != 1 or [name for name, _ in columns] != list(_COLUMNS) or any(hidden for _, hidden in columns):
        raise LedgerError(f"{path}: not a ledger: it has no table of entries", "give the ledger's file")


def _entry(row: tuple[object, ...]) -> Entry | Unreadable:
    number, *texts = row
    if not isinstance(number, int) or abs(number) > _LARGEST_NUMBER:
        return Unreadable(0, "its number is not one")
    for name, text in zip(_COLUMNS[1:], texts, strict=True):
        if not isinstance(text, str):
            return Unreadable(number, f"its {name} is not text")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            return Unreadable(number, f"its {name} is not UTF-8")
    return Entry(number, *(str(text) for text in texts))


def _damaged(path: Path, error: Exception) -> LedgerError:
    return LedgerError(f"{path}: not a ledger that can be read: {error}", RESTORE)
