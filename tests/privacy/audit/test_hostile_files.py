"""Files that are no ledger, and ledgers made to hurt their reader: an error or a violation, never a traceback."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import Institution, Row, resigned, rich_institution, written
from privet.privacy.audit.bodies import KINDS, canonical
from privet.privacy.audit.reading import LARGEST_CELL
from privet.privacy.audit.replay import Audit, audit_ledger
from privet.privacy.budget.ledger import Entry
from privet.privacy.errors import LedgerError

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institution]:
    made = rich_institution(tmp_path_factory.mktemp("house"))
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def rows(house: Institution) -> list[Row]:
    return house.rows()


def signed(house: Institution, tmp_path: Path, rows: list[Row], kind: str, body: str) -> Audit:
    """A ledger that the institution itself made hostile: one more entry, rightly chained and signed."""
    made = resigned([*rows, (0, "2027-01-01T00:00:00.000+00:00", kind, body, "", "", "")], house.key)
    return audit_ledger(written(tmp_path / "hostile.sqlite", made), public_key=house.key.public)


def told(audit: Audit) -> set[str]:
    return {violation.code for violation in audit.violations if violation.entry == audit.entries}


@pytest.mark.parametrize(
    "content", [b"", b"no database", b"SQLite format 3\0" + b"x" * 5000], ids=["empty", "text", "torn"]
)
def test_not_a_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="not a ledger") as error:
        audit_ledger(path)
    assert error.value.remedy
    assert path.read_bytes() == content


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no such file"):
        audit_ledger(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="directory"):
        audit_ledger(tmp_path)


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (x)",
        "CREATE TABLE entries (sequence, time)",
        "CREATE TABLE entries (sequence, time, kind, body, previous, hash, signature AS (zeroblob(1e9)))",
        "CREATE VIEW entries AS WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n) "
        "SELECT x AS sequence, '' AS time, '' AS kind, '' AS body, '' AS previous, '' AS hash, '' AS signature FROM n",
    ],
    ids=["other", "columns", "generated", "endless view"],
)
def test_other_schema(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "file"
    sqlite3.connect(path).executescript(schema)
    with pytest.raises(LedgerError, match="not a ledger"):
        audit_ledger(path)


def test_ledger_without_entries(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no entries"):
        audit_ledger(written(tmp_path / "file", []))


def test_newer_format(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    body = rows[0][3].replace('"format":"1"', '"format":"2"')
    path = written(tmp_path / "file", [(*rows[0][:3], body, *rows[0][4:]), *rows[1:]])
    with pytest.raises(LedgerError, match="format 2") as error:
        audit_ledger(path)
    assert "newer" in error.value.remedy


def test_no_opening(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    made = resigned(rows[1:], house.key)
    audit = audit_ledger(written(tmp_path / "file", made), public_key=house.key.public)
    assert "opening" in audit.counts
    assert "opening" in audit_ledger(written(tmp_path / "file", made)).counts


def test_huge_cell_is_named_and_the_rest_is_read(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    changed = [*rows[:4], (*rows[4][:3], "x" * (LARGEST_CELL + 1), *rows[4][4:]), *rows[5:]]
    audit = audit_ledger(written(tmp_path / "file", changed), public_key=house.key.public)
    assert any(violation.code == "unreadable" and violation.entry == 5 for violation in audit.violations)
    assert audit.head is not None
    assert audit.head.sequence == len(rows)


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("value", [None, 5, 1.5, b"\xff\xfe", "\x00", "x" * 1000, -1, 2**62])
def test_wrong_types(tmp_path: Path, house: Institution, rows: list[Row], column: int, value: Any) -> None:
    row = list(rows[5])
    row[column] = value
    audit = audit_ledger(written(tmp_path / "file", [*rows[:5], tuple(row), *rows[6:]]), public_key=house.key.public)
    assert not audit.holds


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"a":1}',
        '{"a":{"b":"c"}}',
        '{"a":[["x"]]}',
        '{"a":NaN}',
        '{"run": "spaced"}',
        '{"run":"a","run":"b"}',
        "1" * 10_000,
    ],
    ids=lambda body: body[:12],
)
@pytest.mark.parametrize("kind", ["charge", "begin", "account"])
def test_body_that_is_none(tmp_path: Path, house: Institution, rows: list[Row], kind: str, body: str) -> None:
    assert told(signed(house, tmp_path, rows, kind, body)) == {"malformed"}


WORDS = "0 -1 1e999 NaN -Infinity Infinity 1e-330 \0 ward run-1 run-2 train evaluate record none yes renyi 1 10 0.5 2.0"
TEXTS = st.one_of(
    st.sampled_from([*WORDS.split(" "), "a" * 64, "9" * 400, "2026-03-01T09:00:08Z"]),
    st.text(max_size=20),
)


@MANY
@given(data=st.data())
def test_any_leaf_may_be_anything(tmp_path: Path, house: Institution, rows: list[Row], data: st.DataObject) -> None:
    """The institution itself replaces texts in a rightly signed entry: an audit ends, with violations or without."""
    place = data.draw(st.integers(0, len(rows) - 1))
    content = json.loads(rows[place][3])
    for key in data.draw(st.sets(st.sampled_from(sorted(content)), min_size=1, max_size=3)):
        content[key] = data.draw(TEXTS)

    def change(entry: Entry) -> Entry:
        body = canonical(content) if entry.sequence == place + 1 else entry.body
        return Entry(entry.sequence, entry.time, entry.kind, body, "", "", "")

    try:
        audit = audit_ledger(written(tmp_path / "file", resigned(rows, house.key, change)), public_key=house.key.public)
    except LedgerError:
        assert place == 0
        return
    assert not {"hash", "previous", "signature"} & set(audit.counts)


def test_account_of_absurd_terms(tmp_path: Path, house: Institution, rows: list[Row]) -> None:
    body = {"account": "b", "unit": "record", "relation": "add-or-remove-one", "epsilon": "1", "delta": "0.1"}
    body |= {"filter": "renyi", "allows_none": "no", "alpha": "999999999999999"}
    assert told(signed(house, tmp_path, rows, "account", canonical(body))) == {"account"}


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[1]\n", b'{"head":5}\n', b'{"charge":{"hash":5}}\n', b"[" * 99_999, b"\xff"]
)
def test_not_a_witness_file(tmp_path: Path, house: Institution, content: bytes) -> None:
    path = tmp_path / "witness"
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        audit_ledger(house.path, public_key=house.key.public, witness=path)


@pytest.mark.parametrize("field", ["owner", "public_key", "sequence", "hash", "signature"])
@pytest.mark.parametrize("value", [None, "zz", -5, 1e300, [], {}, "\ud800"])
def test_head_of_anything(tmp_path: Path, house: Institution, field: str, value: Any) -> None:
    lines = [json.loads(line) for line in house.witness_path.read_text().splitlines()]
    head = next(line for line in lines if "head" in line)
    head["head"]["head"][field] = value
    path = tmp_path / "witness"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    audit = audit_ledger(house.path, public_key=house.key.public, witness=path)
    assert "witness-signature" in audit.counts


@given(st.lists(st.text(), min_size=5, max_size=5))
def test_canonical_form_is_rfc_8785(texts: list[str]) -> None:
    import rfc8785

    assert canonical(texts).encode() == rfc8785.dumps(texts)
    assert canonical({"a": texts[0], "b": [{"c": texts[1]}]}).encode() == rfc8785.dumps(
        {"b": [{"c": texts[1]}], "a": texts[0]}
    )


def test_every_kind_that_the_book_knows_is_audited() -> None:
    from privet.privacy.budget import book

    assert set(book._FOLDS) <= set(KINDS)
