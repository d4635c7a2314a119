"""Attacks on a ledger's file, each found and named. The attacker holds the file; the institution's key is not his."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import Institution, Row, resigned, rich_institution, rows_of, written
from privet.privacy.audit.replay import Audit, audit_ledger
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Entry
from privet.privacy.budget.recovery import recover
from privet.privacy.errors import LedgerError

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COLUMNS = Entry.__slots__


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institution]:
    made = rich_institution(tmp_path_factory.mktemp("house"))
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def rows(house: Institution) -> list[Row]:
    return house.rows()


def audited(tmp_path: Path, rows: list[Row], house: Institution, *, witness: bool = False) -> Audit:
    path = written(tmp_path / "attacked.sqlite", rows)
    return audit_ledger(path, public_key=house.key.public, witness=house.witness_path if witness else None)


def codes(audit: Audit, entry: int | None = None) -> set[str]:
    return {violation.code for violation in audit.violations if entry is None or violation.entry == entry}


def test_honest_ledger_holds(house: Institution) -> None:
    audit = audit_ledger(house.path, public_key=house.key.public, witness=house.witness_path)
    assert audit.violations == ()
    assert audit.witness is not None
    assert audit.not_witnessed == 1  # the countersignature itself came last
    assert audit.entries == len(house.rows())


def test_file_is_not_changed_by_an_audit(house: Institution) -> None:
    before = house.path.read_bytes()
    audit_ledger(house.path, public_key=house.key.public)
    assert house.path.read_bytes() == before


@MANY
@given(data=st.data())
def test_any_flipped_byte_is_found(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1), "row")
    column = data.draw(st.integers(0, len(COLUMNS) - 1), "column")
    row = list(rows[place])
    if column == 0:
        row[0] ^= 1 << data.draw(st.integers(0, 62), "bit")
    else:
        content = bytearray(row[column].encode())
        content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= data.draw(st.integers(1, 255), "flip")
        try:
            row[column] = content.decode()
        except UnicodeDecodeError:
            row[column] = bytes(content)
    try:
        audit = audited(tmp_path, [*rows[:place], tuple(row), *rows[place + 1 :]], house)
    except LedgerError:  # the opening's format is read first
        assert place == 0
        assert COLUMNS[column] == "body"
        return
    named = {violation.entry for violation in audit.violations}
    if column == 0:
        assert "numbering" in codes(audit)
    else:
        assert rows[place][0] in named
        expected = {"body": "hash", "time": "hash", "kind": "hash", "signature": "signature", "previous": "previous"}
        assert codes(audit) & {expected.get(COLUMNS[column], "hash"), "unreadable"}


def test_signature_in_capitals(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    """Hexadecimal digits have two spellings, and an entry has one."""
    changed = [*rows[:4], (*rows[4][:6], rows[4][6].upper()), *rows[5:]]
    assert codes(audited(tmp_path, changed, house), 5) == {"signature"}


@FEW
@given(data=st.data())
def test_deleted_entry(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 2))  # the last one is truncation: only a witness shows it
    audit = audited(tmp_path, rows[:place] + rows[place + 1 :], house)
    assert {"numbering", "previous"} <= codes(audit, place + 2)


@FEW
@given(data=st.data())
def test_deleted_and_renumbered(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 2))
    kept = rows[:place] + rows[place + 1 :]
    audit = audited(tmp_path, [(number, *row[1:]) for number, row in enumerate(kept, start=1)], house)
    assert {"hash", "previous"} <= codes(audit, place + 1)


@FEW
@given(data=st.data())
def test_repeated_entry(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    assert "numbering" in codes(audited(tmp_path, [*rows, rows[place]], house))
    appended = audited(tmp_path, [*rows, (len(rows) + 1, *rows[place][1:])], house)
    assert {"hash", "signature"} <= codes(appended, len(rows) + 1)


@FEW
@given(data=st.data())
def test_reordered_entries(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    one, other = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=2, max_size=2)))
    changed = list(rows)
    changed[one], changed[other] = (rows[one][0], *rows[other][1:]), (rows[other][0], *rows[one][1:])
    audit = audited(tmp_path, changed, house)
    assert {"hash", "previous"} <= codes(audit, one + 1)
    assert "hash" in codes(audit, other + 1)


@FEW
@given(data=st.data())
def test_inserted_entry(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    """Chained as it should be, and signed by the attacker."""
    place = data.draw(st.integers(1, len(rows)))
    body = '{"account":"ward","because":"because","epsilon":"500","from":"10"}'
    forged = Entry(place + 1, rows[place - 1][1], "raise", body, rows[place - 1][5], "", "")
    digest = forged.expected_hash()
    signature = SigningKey.generate().sign("ledger-entry", bytes.fromhex(digest))
    inserted = (place + 1, *rows[place - 1][1:2], "raise", body, rows[place - 1][5], digest, signature)
    moved = [(row[0] + 1, *row[1:]) for row in rows[place:]]
    audit = audited(tmp_path, [*rows[:place], inserted, *moved], house)
    assert "signature" in codes(audit, place + 1)


@FEW
@given(data=st.data())
def test_truncated_ledger_needs_a_witness(
    tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject
) -> None:
    left = data.draw(st.integers(1, len(rows) - 2))
    # Operator and charge are one transaction: a cut between them is the one that shows from inside.
    assert audited(tmp_path, rows[:left], house).holds == (rows[left - 1][2] != "operator")
    audit = audited(tmp_path, rows[:left], house, witness=True)
    assert "truncated" in codes(audit)
    told = next(str(violation) for violation in audit.violations if violation.code == "truncated")
    assert f"ends at entry {left}" in told
    assert "rolled back or truncated" in told


def test_older_copy_that_went_on(tmp_path: Path) -> None:
    """Put back to yesterday's copy, and used again: a fork, however well it is signed."""
    house = Institution(tmp_path / "house")
    house.open()
    assert house.admit(house.submission("run-1"))
    house.ledger.close()
    shutil.copytree(house.folder, tmp_path / "copy")
    again = Institution(house.folder, key=house.key, clock=house.clock)
    assert again.admit(again.submission("run-2"))
    again.witness("hospital-a")
    older = Institution(tmp_path / "copy", key=house.key, clock=house.clock)
    assert older.admit(older.submission("run-3"))
    assert older.admit(older.submission("run-4"))
    assert audit_ledger(older.path, public_key=house.key.public).holds
    audit = audit_ledger(older.path, public_key=house.key.public, witness=again.witness_path)
    assert {"forked", "lost-charge"} <= codes(audit)


def test_chain_signed_anew_with_another_key(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    thief = SigningKey.generate()
    audit = audited(tmp_path, resigned(rows, thief), house)
    assert codes(audit, 1) >= {"signature"}
    assert audit.counts["signature"] == len(rows)

    def adopted(entry: Entry) -> Entry:
        body = entry.body.replace(house.key.public, thief.public)
        return Entry(entry.sequence, entry.time, entry.kind, body, "", "", "")

    audit = audited(tmp_path, resigned(rows, thief, adopted), house)
    assert {"signature", "other-key"} <= codes(audit, 1)
    path = written(tmp_path / "adopted.sqlite", resigned(rows, thief, adopted))
    alone = audit_ledger(path)
    assert not alone.is_key_given  # "self-consistent only", and the countersignatures are of another chain
    assert codes(alone) <= {"witness-entry"}
    assert "replaced" in codes(audit_ledger(path, witness=house.witness_path))


def test_database_replaced_by_another_institutions(tmp_path: Path, house: Institution) -> None:
    other = rich_institution(tmp_path / "other")
    audit = audit_ledger(other.path, public_key=house.key.public, witness=house.witness_path)
    assert {"signature", "other-key"} <= codes(audit, 1)
    audit = audit_ledger(other.path, public_key=other.key.public, witness=house.witness_path)
    assert codes(audit) == {"replaced", "witness-signature"}


def test_second_ledger_of_the_same_institution(tmp_path: Path) -> None:
    house = Institution(tmp_path / "first")
    house.open()
    house.witness("hospital-a")
    second = Institution(tmp_path / "second", key=house.key)
    second.open("cellar")
    second.open()
    for number in range(9):
        second.admit(second.submission(f"run-{number}"))
    assert "forked" in codes(audit_ledger(second.path, public_key=house.key.public, witness=house.witness_path))


def test_clock_set_back(tmp_path: Path) -> None:
    house = Institution(tmp_path)
    house.open()
    house.clock.moment = house.clock.moment.replace(year=2025)
    house.admit(house.submission("run-1"))
    audit = audit_ledger(house.path, public_key=house.key.public)
    assert codes(audit) == {"clock-set-back"}
    assert "clock set back" in str(audit.violations[0])
    assert audit.violations[0].entry == 4


def test_witness_file_that_was_changed(tmp_path: Path, house: Institution) -> None:
    lines = [json.loads(line) for line in house.witness_path.read_text().splitlines()]
    heads = [line for line in lines if "head" in line]
    heads[-1]["head"]["head"]["sequence"] += 5
    changed = tmp_path / "witness.jsonl"
    changed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    audit = audit_ledger(house.path, public_key=house.key.public, witness=changed)
    assert codes(audit) == {"witness-signature"}


def test_witness_by_two_servers(tmp_path: Path, house: Institution) -> None:
    other = Institution(tmp_path, key=house.key)
    other.open()
    other.witness("hospital-a")
    both = tmp_path / "both.jsonl"
    both.write_text(house.witness_path.read_text() + other.witness_path.read_text())
    assert "witness-key" in codes(audit_ledger(house.path, public_key=house.key.public, witness=both))


def test_snapshots_are_ignored(tmp_path: Path) -> None:
    house = Institution(tmp_path)
    house.open()
    house.ledger.save_snapshot(1, '{"accounts": "a lie"}')
    assert audit_ledger(house.path, public_key=house.key.public).holds


def test_every_signature_is_over_what_stands_in_the_file(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    """A changed body with a repaired hash: the chain behind it breaks, and the signature does not hold."""
    entry = Entry(*rows[3])
    assert rows_of(house.path) == rows
    body = entry.body.replace("clinic", "clinik")
    digest = Entry(entry.sequence, entry.time, entry.kind, body, entry.previous, "", "").expected_hash()
    row = (*rows[3][:3], body, entry.previous, digest, entry.signature)
    audit = audited(tmp_path, [*rows[:3], row, *rows[4:]], house)
    assert "signature" in codes(audit, 4)
    assert "previous" in codes(audit, 5)


def test_recovered_ledger_holds_and_recovers_every_charge(tmp_path: Path) -> None:
    """Rolled back, the same run charged again, then recovered: both charges were spent, and one alone is not enough."""
    house = Institution(tmp_path / "house")
    house.open()
    house.ledger.close()
    shutil.copytree(house.folder, tmp_path / "backup")
    again = Institution(house.folder, key=house.key, clock=house.clock)
    submission = again.submission("run-1")
    assert again.admit(submission)
    again.witness("hospital-a")
    restored = Institution(tmp_path / "backup", key=house.key, clock=house.clock)
    restored.clock()
    assert restored.admit(submission)
    given = {"public_key": house.key.public, "witness": again.witness_path}
    assert {"forked", "lost-charge"} <= codes(audit_ledger(restored.path, **given))
    recover(restored.accounts, again.witness_path)
    audit = audit_ledger(restored.path, **given)
    assert audit.violations == ()
    assert audit.history.accounts["ward"].spent_epsilon == 2 * audit.history.runs["run-1"].epsilon
