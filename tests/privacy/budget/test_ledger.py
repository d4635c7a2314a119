"""Real SQLite files, real processes. Tampering goes around the triggers, as an intruder with the file in hand would."""

import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.privacy.budget.ledger import Entry, Ledger
from privet.privacy.errors import LedgerError

MOMENT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
COLUMNS = ("sequence", "time", "kind", "body", "previous", "hash")


def opened(path: Path, purpose: str = "simulation", owner: str = "node-1") -> Ledger:
    return Ledger.open(path, purpose=purpose, owner=owner, clock=lambda: MOMENT)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of four entries, closed."""
    path = tmp_path / "ledger.sqlite"
    ledger = opened(path)
    for number in range(3):
        ledger.append("charge", {"run": f"run-{number}", "epsilon": "1.000000"})
    ledger.close()
    return path


def around_the_triggers(path: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for trigger in ("no_update", "no_delete", "no_replace"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement, parameters)
    connection.close()


def test_an_entry_reads_back_as_it_was_written(path: Path) -> None:
    ledger = opened(path)
    entries = list(ledger.entries())
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4]
    assert [entry.kind for entry in entries] == ["opened", "charge", "charge", "charge"]
    assert entries[0].content == {"format": "1", "purpose": "simulation", "owner": "node-1"}
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

    entry = Entry(2, "2026-11-22T12:00:00.000+00:00", "charge", '{"run":"a"}', "0" * 64, "")
    canonical = f'["2","2026-11-22T12:00:00.000+00:00","charge","{{\\"run\\":\\"a\\"}}","{"0" * 64}"]'
    assert entry.expected_hash() == hashlib.sha256(canonical.encode()).hexdigest()


def test_times_are_utc_whatever_the_zone_of_the_clock(tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=2))
    ledger = Ledger.open(
        tmp_path / "l", purpose="simulation", owner="n", clock=lambda: datetime(2026, 1, 1, 1, 30, tzinfo=zone)
    )
    head = ledger.head()
    assert head is not None
    assert head.time == "2025-12-31T23:30:00.000+00:00"
    ledger.close()


def test_folders_above_the_ledger_are_made(tmp_path: Path) -> None:
    opened(tmp_path / "a" / "b" / "ledger.sqlite").close()
    assert (tmp_path / "a" / "b" / "ledger.sqlite").is_file()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE sequence = 2",
        "UPDATE entries SET body = body",
        "DELETE FROM entries WHERE sequence = 4",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries VALUES (2, 't', 'charge', '{}', 'p', 'h')",
        "REPLACE INTO entries SELECT 5, time, kind, body, previous, hash FROM entries WHERE sequence = 2",
        "INSERT OR IGNORE INTO entries VALUES (4, 't', 'charge', '{}', 'p', 'h')",
        "INSERT INTO entries VALUES (-1, 't', 'charge', '{}', 'p', 'h')",
        "INSERT INTO entries VALUES (2, 't', 'k', '{}', 'p', 'h') ON CONFLICT(sequence) DO UPDATE SET body = '{}'",
    ],
)
def test_the_ledger_is_append_only(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    before = connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    assert connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall() == before
    connection.close()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sequence", [1, 2, 4])
def test_tampering_with_any_column_of_any_entry(path: Path, column: str, sequence: int) -> None:
    changed = "sequence + 100" if column == "sequence" else f"{column} || ' '"
    around_the_triggers(path, f"UPDATE entries SET {column} = {changed} WHERE sequence = {sequence}")
    with pytest.raises(LedgerError, match=f"entry {sequence} is not what was written"):
        opened(path)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(COLUMNS[1:]), st.integers(1, 4), st.integers(0, 10**6), st.integers(0, 6))
def test_flipping_any_bit_of_any_text(
    tmp_path_factory: pytest.TempPathFactory, column: str, sequence: int, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "ledger.sqlite"
    ledger = opened(path)
    for number in range(3):
        ledger.append("charge", {"run": f"run-{number}"})
    ledger.close()
    connection = sqlite3.connect(path)
    query = f"SELECT {column} FROM entries WHERE sequence = ?"
    text = bytearray(connection.execute(query, (sequence,)).fetchone()[0].encode())
    connection.close()
    text[place % len(text)] ^= 1 << bit
    around_the_triggers(
        path, f"UPDATE entries SET {column} = ? WHERE sequence = {sequence}", parameters=(text.decode(),)
    )
    with pytest.raises(LedgerError, match=f"entry {sequence} is not"):
        opened(path)


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_deleting_an_entry_before_the_last(path: Path, sequence: int) -> None:
    around_the_triggers(path, f"DELETE FROM entries WHERE sequence = {sequence}")
    with pytest.raises(LedgerError, match=f"entry {sequence} is not"):
        opened(path)


def test_deleting_an_entry_and_closing_the_gap(path: Path) -> None:
    around_the_triggers(
        path, "DELETE FROM entries WHERE sequence = 2", "UPDATE entries SET sequence = 2 WHERE sequence = 3"
    )
    with pytest.raises(LedgerError, match="entry 2 is not"):
        opened(path)


def test_reordering_two_entries(path: Path) -> None:
    around_the_triggers(
        path,
        "UPDATE entries SET sequence = 99 WHERE sequence = 2",
        "UPDATE entries SET sequence = 2 WHERE sequence = 3",
        "UPDATE entries SET sequence = 3 WHERE sequence = 99",
    )
    with pytest.raises(LedgerError, match="entry 2 is not"):
        opened(path)


def test_inserting_an_entry_with_a_right_hash_of_its_own(path: Path) -> None:
    forged = Entry(3, "t", "charge", '{"run":"forged"}', "0" * 64, "")
    around_the_triggers(path, "UPDATE entries SET sequence = 5 WHERE sequence = 4")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER IF EXISTS no_replace")
    connection.execute(
        "INSERT INTO entries VALUES (4, ?, ?, ?, ?, ?)",
        (forged.time, forged.kind, forged.body, forged.previous, Entry(4, *_texts(forged)).expected_hash()),
    )
    connection.close()
    with pytest.raises(LedgerError, match="entry 4 is not"):
        opened(path)


def _texts(entry: Entry) -> tuple[str, str, str, str, str]:
    return (entry.time, entry.kind, entry.body, entry.previous, entry.hash)


def test_a_gap_in_the_numbers_with_hashes_that_fit(path: Path) -> None:
    ledger = opened(path)
    head = ledger.head()
    ledger.close()
    assert head is not None
    later = Entry(7, "t", "charge", '{"run":"later"}', head.hash, "")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("INSERT INTO entries VALUES (7, ?, ?, ?, ?, ?)", (*_texts(later)[:4], later.expected_hash()))
    connection.close()
    with pytest.raises(LedgerError, match="entry 5 is not"):
        opened(path)


def test_changing_an_entry_and_its_hash_breaks_the_chain_after_it(path: Path) -> None:
    ledger = opened(path)
    entry = list(ledger.entries())[1]
    ledger.close()
    cheaper = Entry(2, entry.time, entry.kind, entry.body.replace("1.0", "0.1"), entry.previous, "")
    around_the_triggers(
        path,
        "UPDATE entries SET body = ?, hash = ? WHERE sequence = 2",
        parameters=(cheaper.body, cheaper.expected_hash()),
    )
    with pytest.raises(LedgerError, match="entry 3 is not"):
        opened(path)


def test_text_replaced_by_bytes_in_a_table_without_types(path: Path) -> None:
    around_the_triggers(
        path,
        "CREATE TABLE loose (sequence INTEGER PRIMARY KEY, time, kind, body, previous, hash)",
        "INSERT INTO loose SELECT * FROM entries",
        "DROP TABLE entries",
        "ALTER TABLE loose RENAME TO entries",
        "UPDATE entries SET body = CAST(body AS BLOB) WHERE sequence = 2",
    )
    with pytest.raises(LedgerError, match="entry 2 is not"):
        opened(path)


def test_text_that_is_not_unicode(path: Path) -> None:
    around_the_triggers(path, "UPDATE entries SET kind = CAST(x'ff' AS TEXT) WHERE sequence = 2")
    with pytest.raises(LedgerError, match="cannot be read"):
        opened(path)


def test_a_dropped_trigger_is_back_after_reopening(path: Path) -> None:
    around_the_triggers(path)
    opened(path).close()
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM entries")
    connection.close()


def test_a_ledger_of_the_other_purpose_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="not as the deployment ledger of node-1") as caught:
        opened(path, purpose="deployment")
    assert "another folder" in caught.value.remedy
    opened(path).close()


def test_a_ledger_of_another_owner_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="not as the simulation ledger of node-2"):
        opened(path, owner="node-2")


def test_a_ledger_of_a_newer_format_is_refused(path: Path) -> None:
    entry = Entry(1, "t", "opened", '{"format":"2","owner":"node-1","purpose":"simulation"}', "0" * 64, "")
    around_the_triggers(
        path,
        "DELETE FROM entries WHERE sequence > 1",
    )
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(
        "UPDATE entries SET time = ?, body = ?, hash = ?", (entry.time, entry.body, entry.expected_hash())
    )
    connection.close()
    with pytest.raises(LedgerError, match=r'opened as \{"format":"2"'):
        opened(path)


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
    with pytest.raises(LedgerError, match="cannot be opened"):
        opened(tmp_path)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be opened"):
        opened(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_page_is_found(path: Path) -> None:
    opened(path).close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        opened(path)


def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    ledger = opened(path)

    def interrupted() -> None:
        with ledger.transaction():
            ledger.append("charge", {"run": "never"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    head = ledger.head()
    assert head is not None
    assert head.sequence == 4
    assert ledger.append("charge", {"run": "next"}).sequence == 5
    ledger.close()


def test_another_reader_sees_nothing_of_an_open_transaction(path: Path) -> None:
    writer, reader = opened(path), opened(path)
    with writer.transaction():
        writer.append("charge", {"run": "late"})
        assert len(list(reader.entries())) == 4
    assert len(list(reader.entries())) == 5
    writer.close()
    reader.close()


def test_truncation_cannot_be_seen_from_inside(path: Path) -> None:
    """What the module's docstring says is not promised yet; the witness at the server will see it."""
    around_the_triggers(path, "DELETE FROM entries WHERE sequence = 4")
    ledger = opened(path)
    assert len(list(ledger.entries())) == 3
    ledger.close()


CHILD = """
import sys
from pathlib import Path
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import LedgerError
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out.strip()


def test_processes_that_open_new_ledgers_at_once_begin_each_once(tmp_path: Path) -> None:
    """Attack on ourselves: two starts of one node. SQLite says `locked` at once, not in time, while a file changes
    its mode; so the children open many new ledgers, each at the same moment.
    """
    code = """
print("ready", flush=True)
for line in sys.stdin:
    ledger = Ledger.open(Path(line.strip()), purpose="simulation", owner="node-1")
    ledger.append("charge", {"by": sys.argv[1]})
    ledger.close()
    print("done", flush=True)
"""
    children = [started(code, number) for number in range(4)]
    assert [heard(child) for child in children] == ["ready"] * 4
    for number in range(150):
        path = tmp_path / f"{number}.sqlite"
        for child in children:
            tell(child, str(path))
        assert [heard(child) for child in children] == ["done"] * 4
        ledger = opened(path)
        entries = list(ledger.entries())
        assert [entry.kind for entry in entries] == ["opened"] + ["charge"] * 4
        assert sorted(entry.content["by"] for entry in entries[1:]) == list("0123")
        ledger.close()
    for child in children:
        said(child)


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    """The child kills itself inside the next transaction: nothing is closed or flushed."""
    code = """
import os, signal
ledger = Ledger.open(Path(sys.argv[1]), purpose="simulation", owner="node-1")
ledger.append("charge", {"run": "kept"})
with ledger.transaction():
    ledger.append("charge", {"run": "lost"})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    child = started(code, tmp_path / "ledger.sqlite")
    child.communicate(timeout=60)
    assert child.returncode == -9
    ledger = opened(tmp_path / "ledger.sqlite")
    assert [entry.content.get("run") for entry in ledger.entries()] == [None, "kept"]
    assert ledger.append("charge", {"run": "next"}).sequence == 3
    ledger.close()


def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_the_ledger_whole(tmp_path: Path) -> None:
    code = """
import resource, signal
ledger = Ledger.open(Path(sys.argv[1]), purpose="simulation", owner="node-1")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
try:
    while True:
        ledger.append("charge", {"run": "x" * 4000})
except LedgerError as error:
    print(error.message.partition(": ")[2], "|", error.remedy)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
before = ledger.head().sequence
assert ledger.append("charge", {"run": "after"}).sequence == before + 1
"""
    path = tmp_path / "ledger.sqlite"
    told = said(started(code, path))
    assert told.startswith("cannot be written: ")
    assert "make room" in told
    ledger = opened(path)
    head = ledger.head()
    assert head is not None
    assert head.content == {"run": "after"}
    ledger.close()
