"""The server as witness: what a node tells it is kept only where it is the node's own ledger, and within bounds."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from framing import message_of
from institution import NOW, guard, submission
from privet.privacy.budget.accounts import AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import ENTRY, Entry
from privet.privacy.budget.witness import Witness, head_text, read_witness
from privet.privacy.channel import words
from privet.privacy.errors import LedgerError
from privet.privacy.home import Home
from privet.server.witnesses import Witnesses

SERVER = SigningKey.generate()
TERMS = AccountTerms("record", Decimal(10), Decimal("1e-4"), allows_none=True)
Change = Callable[[Entry, Guard], dict[str, Any]]


@pytest.fixture
def keeper(tmp_path: Path) -> Guard:
    """The guard of an institution that was charged for two runs."""
    book = Home(tmp_path / "node").create_book(None)
    book.open_with_dataset(TERMS, DeclaredDataset("ward7", "digits", "/data/ward7.csv", 100, "ward7"))
    book.ledger.close()
    kept = guard(tmp_path / "node")[1]
    for run_id in ("a", "b"):
        kept.admit(submission(run_id), NOW)
    return kept


def reply(keeper: Guard, charges: list[dict[str, Any]]) -> Message:
    told = ConfigRecord({words.HEAD: head_text(keeper.head("ward")), words.CHARGES: json.dumps(charges)})
    return message_of(RecordDict({words.LEDGER: told}))


def charges_of(keeper: Guard, after: int = 0) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in keeper.charges_after(after)]


def resigned(entry: Entry, keeper: Guard, **columns: Any) -> dict[str, Any]:
    """An entry as the institution itself would sign it, with other columns."""
    changed = replace(entry, **columns)
    digest = changed.expected_hash()
    return asdict(replace(changed, hash=digest, signature=keeper._ledger.key.sign(ENTRY, bytes.fromhex(digest))))


def test_own_charges_are_kept_once(keeper: Guard, tmp_path: Path) -> None:
    witnesses = Witnesses(tmp_path / "witness", SERVER)
    assert witnesses.take("ward", reply(keeper, charges_of(keeper)))
    keeper.admit(submission("c"), NOW)
    assert witnesses.take("ward", reply(keeper, charges_of(keeper))), "those that are held may be told again"
    heads, charges = read_witness(witnesses.file("ward"))
    assert len(heads) == 2
    assert [json.loads(charge["body"])["run"] for charge in charges.values()] == ["a", "b", "c"]


_CHANGES: dict[str, Change] = {
    "another body": lambda entry, _: asdict(replace(entry, body="{}")),
    "another hash": lambda entry, _: asdict(replace(entry, hash="ab" * 32)),
    "another's signature": lambda entry, _: asdict(
        replace(entry, signature=SERVER.sign(ENTRY, bytes.fromhex(entry.hash)))
    ),
    "another kind": lambda entry, keeper: resigned(entry, keeper, kind="dataset"),
    "beyond the head": lambda entry, keeper: resigned(entry, keeper, sequence=10_000),
    "number of no entry": lambda entry, keeper: resigned(entry, keeper, sequence=0),
    "number that is a text": lambda entry, _: {**asdict(entry), "hash": "x", "sequence": "4"},
    "hash that is none": lambda entry, _: {**asdict(entry), "hash": None},
    "text without a canonical form": lambda entry, _: asdict(replace(entry, body="\ud800", hash="x")),
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_charge_that_is_not_of_the_ledger_is_not_kept(
    keeper: Guard, tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    witnesses = Witnesses(tmp_path / "witness", SERVER)
    *others, last = keeper.charges_after(0)
    assert not witnesses.take("ward", reply(keeper, [*map(asdict, others), change(last, keeper)]))
    assert "tells a charge that is none of its ledger's entries" in caplog.text
    assert not witnesses.file("ward").exists()
    assert witnesses.take("ward", reply(keeper, charges_of(keeper))), "the ledger itself is still good"


def test_charge_that_was_kept_back_is_not_taken_later(keeper: Guard, tmp_path: Path) -> None:
    """A head says that all charges before it were told."""
    witnesses = Witnesses(tmp_path / "witness", SERVER)
    assert witnesses.take("ward", reply(keeper, charges_of(keeper)[:1]))
    keeper.admit(submission("c"), NOW)
    assert not witnesses.take("ward", reply(keeper, charges_of(keeper)))


def test_file_has_a_largest_size(keeper: Guard, tmp_path: Path) -> None:
    path = tmp_path / "witness.jsonl"
    Witness(path, "ward", SERVER).countersign(keeper.head("ward"), [])
    before = path.read_bytes()
    witness = Witness(path, "ward", SERVER, most_bytes=len(before) + 500)
    keeper.admit(submission("c"), NOW)
    with pytest.raises(LedgerError, match=f"the most that is kept is {len(before) + 500}"):
        witness.countersign(keeper.head("ward"), [])
    assert path.read_bytes() == before
    newest = witness.newest()
    assert newest is not None
    assert newest == Witness(path, "ward", SERVER).newest()


def test_threads_that_tell_the_same_head_write_it_once(keeper: Guard, tmp_path: Path) -> None:
    """An answer of a stream that has gone may still be countersigned when the next stream's comes."""
    witnesses, start, taken = Witnesses(tmp_path / "witness", SERVER), threading.Barrier(8), list[bool]()
    message = reply(keeper, charges_of(keeper))

    def tell() -> None:
        start.wait(20)
        taken.append(witnesses.take("ward", message))

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert taken == [True] * 8
    assert len(witnesses.file("ward").read_text(encoding="utf-8").splitlines()) == 3
