"""Real SQLite files, real processes. Tampering goes around the triggers, as an intruder with the file in hand would."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import ENTRY, SNAPSHOT, Entry, Ledger
from privet.privacy.errors import LedgerError
from signed_ledgers import key_of, opened, read

COLUMNS = ("sequence", "time", "kind", "body", "previous", "hash", "signature")
KEY = SigningKey.generate()
NOTE = "note"  # a kind that means nothing to the account book
TABLES_OF_BEFORE = """
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, signature TEXT NOT NULL) STRICT;
CREATE TRIGGER no_replace BEFORE INSERT ON entries WHEN EXISTS
    (SELECT 1 FROM entries WHERE sequence >= NEW.sequence OR hash = NEW.hash)
    BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of four entries, closed."""
    return of_four_entries(tmp_path / "ledger.sqlite", "simulation")


def of_four_entries(path: Path, purpose: str) -> Path:
    ledger = opened(path, purpose)
    for number in range(3):
        ledger.append(NOTE, {"run": f"run-{number}", "epsilon": "1.000000"})
    ledger.close()
    return path


def around_the_triggers(path: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for trigger in ("no_update", "no_delete", "no_replace"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement, parameters)
    connection.close()


def is_found(path: Path, told: str) -> None:
    """Whoever reads the ledger is told: the account book, and whoever goes through the entries."""
    if told.startswith("entry 1 "):  # opening it looks at the first entry already, as far as it says whose it is
        with pytest.raises(LedgerError):
            AccountBook(opened(path))
        with pytest.raises(LedgerError):
            read(path)
        return
    ledger = opened(path)
    with pytest.raises(LedgerError, match=told):
        AccountBook(ledger)
    with pytest.raises(LedgerError, match=told):
        list(ledger.verified())
    ledger.close()


def signed(path: Path, entry: Entry, key: SigningKey | None = None) -> Entry:
    """The entry with the right hash, and with a signature."""
    digest = entry.expected_hash()
    return replace(entry, hash=digest, signature=(key or key_of(path)).sign(ENTRY, bytes.fromhex(digest)))


def test_an_entry_reads_back_as_it_was_written(path: Path) -> None:
    ledger = opened(path)
    entries = list(ledger.entries())
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4]
    assert [entry.kind for entry in entries] == ["opened", NOTE, NOTE, NOTE]
    assert entries[0].content == {
        "format": "1",
        "purpose": "simulation",
        "owner": "node-1",
        "public_key": key_of(path).public,
    }
    assert entries[3].content == {"run": "run-2", "epsilon": "1.000000"}
    assert entries[3] == ledger.head()
    assert list(ledger.entries(after=3)) == entries[3:]
    ledger.close()


def test_each_entry_holds_the_hash_of_the_one_before(path: Path) -> None:
    ledger = opened(path)
    entries = list(ledger.entries())
    assert [entry.previous for entry in entries] == ["0" * 64, *(entry.hash for entry in entries[:-1])]
    assert len({entry.hash for entry in entries}) == 4
    ledger.close()


def test_the_hash_can_be_recomputed_from_its_definition() -> None:
    """SHA-256 over the RFC 8785 array of the other columns: written out by hand, so that an auditor can."""
    import hashlib

    entry = Entry(2, "2026-11-22T12:00:00.000+00:00", "charge", '{"run":"a"}', "0" * 64, "", "")
    canonical = f'["2","2026-11-22T12:00:00.000+00:00","charge","{{\\"run\\":\\"a\\"}}","{"0" * 64}"]'
    assert entry.expected_hash() == hashlib.sha256(canonical.encode()).hexdigest()


def test_times_are_utc_whatever_the_zone_of_the_clock(tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=2))
    ledger = Ledger.open(
        tmp_path / "l",
        purpose="simulation",
        owner="n",
        key=SigningKey.generate(),
        clock=lambda: datetime(2026, 1, 1, 1, 30, tzinfo=zone),
    )
    head = ledger.head()
    assert head is not None
    assert head.time == "2025-12-31T23:30:00.000+00:00"
    ledger.close()


@given(st.datetimes(min_value=datetime(2000, 1, 1)))
@settings(max_examples=50, deadline=None)
def test_time_is_written_in_milliseconds_as_iso_8601_has_it(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    with tempfile.TemporaryDirectory() as folder:
        ledger = opened(Path(folder) / "l", key=KEY, now=moment)
        assert ledger.append(NOTE, {}).time == moment.isoformat(timespec="milliseconds")
        ledger.close()


def test_folders_above_the_ledger_are_made(tmp_path: Path) -> None:
    opened(tmp_path / "a" / "b" / "ledger.sqlite").close()
    assert (tmp_path / "a" / "b" / "ledger.sqlite").is_file()


SAME_HASH = "REPLACE INTO entries SELECT 5, time, kind, body, previous, hash, signature FROM entries WHERE sequence = 2"


@pytest.mark.parametrize("purpose", ["simulation", "deployment"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE sequence = 2",
        "UPDATE entries SET body = body",
        "DELETE FROM entries WHERE sequence = 4",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries VALUES (2, 't', 'note', '{}', 'p', 'h', 's')",
        "INSERT OR IGNORE INTO entries VALUES (4, 't', 'note', '{}', 'p', 'h', 's')",
        "INSERT INTO entries VALUES (-1, 't', 'note', '{}', 'p', 'h', 's')",
        "INSERT INTO entries VALUES (2, 't', 'k', '{}', 'p', 'h', 's') ON CONFLICT(sequence) DO UPDATE SET body = '{}'",
    ],
)
def test_the_ledger_is_append_only(tmp_path: Path, statement: str, purpose: str) -> None:
    connection = sqlite3.connect(of_four_entries(tmp_path / "l.sqlite", purpose), isolation_level=None)
    before = connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    assert connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall() == before
    connection.close()


def test_no_entry_of_a_deployment_takes_the_place_of_one_with_its_hash(tmp_path: Path) -> None:
    connection = sqlite3.connect(of_four_entries(tmp_path / "l.sqlite", "deployment"), isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(SAME_HASH)
    connection.close()


def test_nor_in_a_simulation_where_it_is_found_behind_it(path: Path) -> None:
    """Its file keeps no index of hashes, and so has nothing that could be replaced by hash."""
    connection = sqlite3.connect(path, isolation_level=None)
    before = connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    connection.execute(SAME_HASH)
    assert connection.execute("SELECT * FROM entries WHERE sequence < 5 ORDER BY sequence").fetchall() == before
    connection.close()
    is_found(path, "entry 5 is not what this institution wrote")


def test_simulated_ledger_of_before_goes_on(tmp_path: Path) -> None:
    """Begun when a simulation's file had the tables of a deployment's."""
    path, key = tmp_path / "l.sqlite", key_of(tmp_path / "l.sqlite")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(TABLES_OF_BEFORE)
    connection.close()
    for number in range(2):
        ledger = opened(path, key=key)
        ledger.append(NOTE, {"number": str(number)})
        ledger.close()
    assert [entry.kind for entry in read(path)] == ["opened", NOTE, NOTE]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sequence", [1, 2, 4])
def test_tampering_with_any_column_of_any_entry(path: Path, column: str, sequence: int) -> None:
    changed = "sequence + 100" if column == "sequence" else f"{column} || ' '"
    around_the_triggers(path, f"UPDATE entries SET {column} = {changed} WHERE sequence = {sequence}")
    is_found(path, f"entry {sequence} is not what this institution wrote")


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(COLUMNS[1:]), st.integers(1, 4), st.integers(0, 10**6), st.integers(0, 6))
def test_flipping_any_bit_of_any_text(
    tmp_path_factory: pytest.TempPathFactory, column: str, sequence: int, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "ledger.sqlite"
    ledger = opened(path)
    for number in range(3):
        ledger.append(NOTE, {"run": f"run-{number}"})
    ledger.close()
    connection = sqlite3.connect(path)
    query = f"SELECT {column} FROM entries WHERE sequence = ?"
    text = bytearray(connection.execute(query, (sequence,)).fetchone()[0].encode())
    connection.close()
    text[place % len(text)] ^= 1 << bit
    around_the_triggers(
        path, f"UPDATE entries SET {column} = ? WHERE sequence = {sequence}", parameters=(text.decode(),)
    )
    is_found(path, f"entry {sequence} is not what this institution wrote")


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_deleting_an_entry_before_the_last(path: Path, sequence: int) -> None:
    around_the_triggers(path, f"DELETE FROM entries WHERE sequence = {sequence}")
    is_found(path, f"entry {sequence} is not what this institution wrote")


def test_deleting_an_entry_and_closing_the_gap(path: Path) -> None:
    around_the_triggers(
        path, "DELETE FROM entries WHERE sequence = 2", "UPDATE entries SET sequence = 2 WHERE sequence = 3"
    )
    is_found(path, "entry 2 is not what this institution wrote")


def test_reordering_two_entries(path: Path) -> None:
    around_the_triggers(
        path,
        "UPDATE entries SET sequence = 99 WHERE sequence = 2",
        "UPDATE entries SET sequence = 2 WHERE sequence = 3",
        "UPDATE entries SET sequence = 3 WHERE sequence = 99",
    )
    is_found(path, "entry 2 is not what this institution wrote")


def overwrite(path: Path, *entries: Entry) -> None:
    """Put entries in the place of those of the same numbers, or at the end."""
    around_the_triggers(path)
    connection = sqlite3.connect(path, isolation_level=None)
    for entry in entries:
        connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(entry))
    connection.close()


def test_appending_an_entry_that_follows_another(path: Path) -> None:
    """Rightly hashed and signed by the institution itself, in a ledger that it is not a part of."""
    overwrite(path, signed(path, Entry(5, "t", NOTE, '{"run":"elsewhere"}', "0" * 64, "", "")))
    is_found(path, "entry 5 is not what this institution wrote")


def test_appending_an_entry_that_leaves_out_a_number(path: Path) -> None:
    """By somebody who has the key: the chain is whole, and a number of it never was."""
    overwrite(path, signed(path, Entry(6, "t", NOTE, "{}", read(path)[-1].hash, "", "")))
    is_found(path, "entry 5 is not what this institution wrote")


def test_changing_an_entry_and_its_hash_is_found_by_its_signature(path: Path) -> None:
    entry = read(path)[1]
    cheaper = replace(entry, body=entry.body.replace("1.0", "0.1"))
    assert cheaper != entry
    overwrite(path, replace(cheaper, hash=cheaper.expected_hash()))
    is_found(path, "entry 2 is not what this institution wrote")


def test_changing_an_entry_its_hash_and_its_signature_breaks_the_chain_after_it(path: Path) -> None:
    """By somebody who has the key: all that follows would have to be written anew."""
    entry = read(path)[1]
    overwrite(path, signed(path, replace(entry, body=entry.body.replace("1.0", "0.1"))))
    is_found(path, "entry 3 is not what this institution wrote")


@pytest.mark.parametrize("sequence", [2, 3, 4])
def test_an_entry_signed_again_by_another_key(path: Path, sequence: int) -> None:
    overwrite(path, signed(path, read(path)[sequence - 1], SigningKey.generate()))
    is_found(path, f"entry {sequence} is not what this institution wrote")


def test_a_whole_ledger_signed_again_by_another_key(path: Path) -> None:
    """The stranger's chain is good; but it is not signed by the institution's key, whatever its opening says."""
    stranger, previous, forged = SigningKey.generate(), "0" * 64, []
    for entry in read(path):
        body = entry.body.replace(key_of(path).public, stranger.public)
        forged.append(signed(path, replace(entry, body=body, previous=previous), stranger))
        previous = forged[-1].hash
    overwrite(path, *forged)
    with pytest.raises(LedgerError, match="signed by another key"):
        opened(path)
    kept = replace(forged[0], body=read_raw(path)[0].body.replace(stranger.public, key_of(path).public))
    overwrite(path, signed(path, kept, stranger))
    with pytest.raises(LedgerError, match="entry 1 is not what this institution wrote"):
        AccountBook(opened(path))


def read_raw(path: Path) -> list[Entry]:
    connection = sqlite3.connect(path)
    try:
        return [Entry(*row) for row in connection.execute("SELECT * FROM entries ORDER BY sequence")]
    finally:
        connection.close()


def test_a_signature_for_another_purpose_is_none(path: Path) -> None:
    entry = read(path)[3]
    overwrite(path, replace(entry, signature=key_of(path).sign(SNAPSHOT, bytes.fromhex(entry.hash))))
    is_found(path, "entry 4 is not what this institution wrote")


def test_a_ledger_is_opened_by_the_key_that_signs_it_only(path: Path) -> None:
    with pytest.raises(LedgerError, match="signed by another key") as caught:
        opened(path, key=SigningKey.generate())
    assert "ledger and key together" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    ["state = '{}'", "sequence = 3", "hash = '00'", "signature = '00'", "state = replace(state, '10', '99')"],
)
def test_a_snapshot_that_was_changed_is_not_believed(path: Path, change: str) -> None:
    """The book is then read from the first entry on, and says the same."""
    ledger = opened(path)
    book = AccountBook(ledger)
    book.open_account("ward", AccountTerms("record", Decimal(10), Decimal("1e-4")))
    ledger.save_snapshot(5, book.book.dump())
    assert ledger.snapshot() is not None
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"UPDATE snapshots SET {change}")
    connection.close()
    assert ledger.snapshot() is None
    assert AccountBook(ledger).book.accounts["ward"].epsilon == 10
    ledger.close()


@pytest.mark.parametrize("body", ["'x'", "'5'", "'[1]'", "'null'", "CAST(x'ff' AS TEXT)"])
def test_an_opening_that_says_nothing_is_an_error_with_a_remedy(path: Path, body: str) -> None:
    around_the_triggers(path, f"UPDATE entries SET body = {body} WHERE sequence = 1")
    with pytest.raises(LedgerError) as caught:
        opened(path)
    assert "restore" in caught.value.remedy


def test_a_snapshot_of_entries_that_were_replaced_is_not_believed(path: Path) -> None:
    """Attack: a true snapshot of richer days beside another history."""
    ledger = opened(path)
    ledger.save_snapshot(4, AccountBook(ledger).book.dump())
    ledger.close()
    overwrite(path, signed(path, replace(read(path)[3], body='{"run":"another"}')))
    ledger = opened(path)
    assert ledger.snapshot() is None
    ledger.close()


def test_text_replaced_by_bytes_in_a_table_without_types(path: Path) -> None:
    around_the_triggers(
        path,
        "CREATE TABLE loose (sequence INTEGER PRIMARY KEY, time, kind, body, previous, hash, signature)",
        "INSERT INTO loose SELECT * FROM entries",
        "DROP TABLE entries",
        "ALTER TABLE loose RENAME TO entries",
        "UPDATE entries SET body = CAST(body AS BLOB) WHERE sequence = 2",
    )
    is_found(path, "entry 2 is not what this institution wrote")


def test_text_that_is_not_unicode(path: Path) -> None:
    around_the_triggers(path, "UPDATE entries SET kind = CAST(x'ff' AS TEXT) WHERE sequence = 2")
    is_found(path, "cannot be read")


def test_a_dropped_trigger_is_back_after_reopening(path: Path) -> None:
    around_the_triggers(path)
    opened(path).close()
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM entries")
    connection.close()


def test_a_ledger_of_the_other_purpose_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="not the deployment ledger of node-1") as caught:
        opened(path, purpose="deployment")
    assert "another folder" in caught.value.remedy
    opened(path).close()


def test_a_ledger_of_another_owner_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="not the simulation ledger of node-2"):
        opened(path, owner="node-2")


def test_a_ledger_of_a_newer_format_is_refused(path: Path) -> None:
    opening = read(path)[0]
    overwrite(path, signed(path, replace(opening, body=opening.body.replace('"format":"1"', '"format":"2"'))))
    with pytest.raises(LedgerError, match="a ledger of format 2, not 1") as caught:
        opened(path)
    assert "newer" in caught.value.remedy


def test_a_file_that_is_not_a_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a ledger\n" * 100)
    with pytest.raises(LedgerError, match="not a ledger that can be opened") as caught:
        opened(path)
    assert caught.value.remedy
    assert path.read_text() == "these are notes, not a ledger\n" * 100


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "patients.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE patients (name TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="belongs to another program"):
        opened(path)
    assert path.read_bytes() == before


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entries (sequence INTEGER PRIMARY KEY, hash TEXT, note TEXT)")
    connection.close()
    with pytest.raises(LedgerError, match="not a ledger that can be opened"):
        opened(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="not a ledger that can be opened"):
        opened(tmp_path, key=SigningKey.generate())


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="not a ledger that can be opened"):
        opened(tmp_path / "file" / "ledger.sqlite", key=SigningKey.generate())
    with pytest.raises(LedgerError, match="cannot be read"):
        key_of(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_page_is_found(path: Path) -> None:
    opened(path).close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        AccountBook(opened(path))


def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    ledger = opened(path)

    def interrupted() -> None:
        with ledger.transaction():
            ledger.append(NOTE, {"run": "never"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    head = ledger.head()
    assert head is not None
    assert head.sequence == 4
    assert ledger.append(NOTE, {"run": "next"}).sequence == 5
    ledger.close()


def test_another_reader_sees_nothing_of_an_open_transaction(path: Path) -> None:
    writer, reader = opened(path), opened(path)
    with writer.transaction():
        writer.append(NOTE, {"run": "late"})
        assert len(list(reader.entries())) == 4
    assert len(list(reader.entries())) == 5
    writer.close()
    reader.close()


def test_truncation_cannot_be_seen_from_inside(path: Path) -> None:
    """As the module's docstring says: only a witness shows it (`test_recovery.py`)."""
    around_the_triggers(path, "DELETE FROM entries WHERE sequence = 4")
    ledger = opened(path)
    assert len(list(ledger.verified())) == 3
    ledger.close()


CHILD = """
import sys
from pathlib import Path
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import LedgerError

NOTE = "note"


def opened(path):
    key = SigningKey.load_or_create(path.with_suffix(".pem"))
    return Ledger.open(path, purpose="simulation", owner="node-1", key=key)
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out.strip()


@pytest.fixture
def together() -> Callable[[str, int, Path], list[str]]:
    """What children say who stand ready first, and are let go at the same moment."""

    def run(code: str, children: int, path: Path) -> list[str]:
        waiting = 'print("ready", flush=True); sys.stdin.readline()\n'
        running = [started(waiting + code, path, number) for number in range(children)]
        for child in running:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in running:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [said(child) for child in running]

    return run


def test_processes_that_open_new_ledgers_at_once_begin_each_once(
    tmp_path: Path, together: Callable[[str, int, Path], list[str]]
) -> None:
    """Many ledgers, as one is not enough to catch the moment: SQLite says `locked` while a file changes mode."""
    code = """
for number in range(30):
    ledger = opened(Path(sys.argv[1]) / f"{number}.sqlite")
    ledger.append(NOTE, {"by": sys.argv[2]})
    ledger.close()
print("done")
"""
    assert together(code, 4, tmp_path) == ["done"] * 4
    for number in range(30):
        ledger = opened(tmp_path / f"{number}.sqlite")
        entries = list(ledger.entries())
        assert [entry.kind for entry in entries] == ["opened"] + [NOTE] * 4
        assert sorted(entry.content["by"] for entry in entries[1:]) == list("0123")
        ledger.close()


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    """The child kills itself inside the next transaction: nothing is closed or flushed."""
    code = """
import os, signal
ledger = opened(Path(sys.argv[1]))
ledger.append(NOTE, {"run": "kept"})
with ledger.transaction():
    ledger.append(NOTE, {"run": "lost"})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    child = started(code, tmp_path / "ledger.sqlite")
    child.communicate(timeout=60)
    assert child.returncode == -9
    ledger = opened(tmp_path / "ledger.sqlite")
    assert [entry.content.get("run") for entry in ledger.entries()] == [None, "kept"]
    assert ledger.append(NOTE, {"run": "next"}).sequence == 3
    ledger.close()


def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_the_ledger_whole(tmp_path: Path) -> None:
    code = """
import resource, signal
ledger = opened(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
try:
    while True:
        ledger.append(NOTE, {"run": "x" * 4000})
except LedgerError as error:
    print(error.message.partition(": ")[2], "|", error.remedy)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
before = ledger.head().sequence
assert ledger.append(NOTE, {"run": "after"}).sequence == before + 1
"""
    path = tmp_path / "ledger.sqlite"
    told = said(started(code, path))
    assert told.startswith("cannot be written: ")
    assert "free" in told
    ledger = opened(path)
    head = ledger.head()
    assert head is not None
    assert head.content == {"run": "after"}
    ledger.close()
