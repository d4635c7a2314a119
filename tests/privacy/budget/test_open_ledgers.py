"""Many ledgers, few open files: what is let go of is opened again, and must still hold what it held."""

import os
import shutil
from pathlib import Path

import pytest
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.budget.open_ledgers import OpenLedgers
from privet.privacy.errors import LedgerError

KEY = SigningKey.generate()


def ledgers_of(folder: Path, count: int, among: OpenLedgers) -> list[Ledger]:
    return [
        Ledger.open(folder / f"{number}.sqlite", purpose="simulation", owner="ward", key=KEY, among=among)
        for number in range(count)
    ]


def open_files_in(folder: Path) -> set[str]:
    """The ledgers whose files this process has open."""
    names = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
    return {Path(name).stem for name in names if name.startswith(str(folder.resolve())) and name.endswith(".sqlite")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux lists them")
def test_no_more_files_are_open_than_allowed(tmp_path: Path) -> None:
    among = OpenLedgers(most=3)
    ledgers = ledgers_of(tmp_path, 8, among)
    assert open_files_in(tmp_path) == {"5", "6", "7"}
    ledgers[0].append("note", {"a": "b"})
    assert open_files_in(tmp_path) == {"6", "7", "0"}
    assert len(among) == 3
    ledgers[6].append("note", {"a": "b"})
    ledgers[1].append("note", {"a": "b"})
    assert open_files_in(tmp_path) == {"0", "6", "1"}, "the least recently used was let go"
    for ledger in ledgers:
        ledger.close()
    assert open_files_in(tmp_path) == set()
    assert len(among) == 0


def test_ledger_that_was_let_go_goes_on_where_it_was(tmp_path: Path) -> None:
    among = OpenLedgers(most=1)
    books = [AccountBook(ledger) for ledger in ledgers_of(tmp_path, 3, among)]
    for turn in range(3):
        for book in books:
            with book.transaction():
                book.ledger.append("note", {"turn": str(turn)})
    for book in books:
        told = [entry.content["turn"] for entry in book.ledger.verified() if entry.kind == "note"]
        assert told == ["0", "1", "2"]


def test_ledger_with_a_transaction_under_way_is_not_let_go(tmp_path: Path) -> None:
    among = OpenLedgers(most=1)
    one, other = ledgers_of(tmp_path, 2, among)
    with one.transaction():
        one.append("note", {"a": "b"})
        other.append("note", {"a": "b"})
        one.append("note", {"a": "c"})
    assert [entry.kind for entry in one.entries()] == ["opened", "note", "note"]


def test_what_another_process_wrote_meanwhile_is_read_and_verified(tmp_path: Path) -> None:
    among = OpenLedgers(most=1)
    one, other = ledgers_of(tmp_path, 2, among)
    book = AccountBook(one)
    other.append("note", {"a": "b"})
    stranger = Ledger.open(one.path, purpose="simulation", owner="ward", key=KEY)
    entry = stranger.append("note", {"a": "b"})
    stranger.key = SigningKey.generate()
    assert book.newest() == (entry.sequence, entry.hash)
    other.append("note", {"a": "b"})
    stranger.append("note", {"a": "c"})
    with pytest.raises(LedgerError, match="entry 3 is not what this institution wrote"):
        book.catch_up()


@pytest.mark.parametrize("lost", ["older", "gone"])
def test_ledger_put_back_to_an_older_copy_meanwhile(tmp_path: Path, lost: str) -> None:
    among = OpenLedgers(most=1)
    one, other = ledgers_of(tmp_path, 2, among)
    other.append("note", {"a": "b"})
    shutil.copy(one.path, tmp_path / "older.sqlite")
    one.append("note", {"a": "b"})
    other.append("note", {"a": "b"})
    one.path.unlink()
    if lost == "older":
        (tmp_path / "older.sqlite").rename(one.path)
    with pytest.raises(LedgerError):
        one.append("note", {"a": "c"})


def test_ledger_put_back_to_an_older_copy_under_a_running_process(tmp_path: Path) -> None:
    """The file is open all the while, and its newest entry is cut off around the triggers."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite", purpose="simulation", owner="ward", key=KEY)
    book = AccountBook(ledger)
    with book.transaction():
        ledger.append("note", {"a": "b"})
    cut = Ledger.open(tmp_path / "ledger.sqlite", purpose="simulation", owner="ward", key=KEY)
    cut._connection.execute("DROP TRIGGER no_delete")
    cut._connection.execute("DELETE FROM entries WHERE sequence = 2")
    with pytest.raises(LedgerError, match="entry 2 is not what this institution wrote"), book.transaction():
        ledger.append("note", {"a": "c"})


def test_entries_of_another_process_are_verified_between_two_steps(tmp_path: Path) -> None:
    """The file is open all the while, and nothing else of it is read but whether somebody else has written."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite", purpose="simulation", owner="ward", key=KEY)
    book = AccountBook(ledger)
    for turn in range(2):
        with book.transaction():
            ledger.append("note", {"turn": str(turn)})
    stranger = Ledger.open(tmp_path / "ledger.sqlite", purpose="simulation", owner="ward", key=KEY)
    stranger.append("note", {"turn": "2"})
    with book.transaction():
        ledger.append("note", {"turn": "3"})
    assert [entry.content["turn"] for entry in ledger.verified() if entry.sequence > 1] == [
        "0",
        "1",
        "2",
        "3",
    ]
    stranger.key = SigningKey.generate()
    stranger.append("note", {"turn": "4"})
    with pytest.raises(LedgerError, match="entry 6 is not what this institution wrote"), book.transaction():
        ledger.append("note", {"turn": "5"})


def test_step_that_failed_leaves_the_next_one_where_it_was(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.sqlite", purpose="simulation", owner="ward", key=KEY)
    book = AccountBook(ledger)
    for turn in ("0", "lost", "1"):
        try:
            with book.transaction():
                ledger.append("note", {"turn": turn})
                book.catch_up()
                if turn == "lost":
                    raise ValueError
        except ValueError:
            pass
    assert [entry.content.get("turn") for entry in ledger.verified()] == [None, "0", "1"]


def test_closed_ledger_stays_closed(tmp_path: Path) -> None:
    among = OpenLedgers(most=1)
    one, other = ledgers_of(tmp_path, 2, among)
    one.close()
    other.close()
    for ledger in (one, other):
        with pytest.raises(LedgerError, match="closed"):
            ledger.append("note", {"a": "b"})
