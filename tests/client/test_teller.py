"""The teller: where the ledger stands, as it is told with every answer, and what the server has witnessed of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from privet.client.teller import Teller
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.witness import Witness, head_text, read_countersigned, read_head
from privet.privacy.channel import words
from privet.privacy.channel.flower import empty_run, identify_process
from privet.privacy.errors import LedgerError, Refusal, RefusedError
from signed_ledgers import declared, opened


@pytest.fixture(autouse=True)
def _process_has_a_run() -> None:
    """As a node's has: Flower makes no message without."""
    identify_process(empty_run(1))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    declared(opened(path)).ledger.close()
    return path


@pytest.fixture
def teller(ledger: Path) -> Iterator[Teller]:
    teller = Teller("node-1", lambda: AccountBook(opened(ledger)))
    yield teller
    teller.close()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness.jsonl", "node-1", SigningKey.load_or_create(tmp_path / "server.pem"))


def answer() -> Message:
    return Message(RecordDict({words.LEDGER: ConfigRecord({})}), 1, words.TRAIN)


def told(message: Message) -> ConfigRecord:
    record = message.content[words.LEDGER]
    assert isinstance(record, ConfigRecord)
    return record


def test_answer_brings_the_head_of_the_ledger_as_it_is_when_it_is_sent(teller: Teller, ledger: Path) -> None:
    first = read_head(told(teller.stamp(answer()))[words.HEAD])
    accounts = AccountBook(opened(ledger))
    accounts.ledger.append("raise", {"account": "records", "epsilon": "2000", "because": "a test"})
    accounts.ledger.close()
    second = read_head(told(teller.stamp(answer()))[words.HEAD])
    assert second.sequence == first.sequence + 1
    assert second.owner == "node-1"
    assert second.is_signed()


def test_answer_without_a_ledger_and_failures_are_left_as_they_are(teller: Teller) -> None:
    plain = Message(RecordDict({"x": ConfigRecord({"a": 1})}), 1, words.TRAIN)
    assert teller.stamp(plain).content == RecordDict({"x": ConfigRecord({"a": 1})})
    failed = Message(Error(1, "x"), reply_to=plain)
    assert teller.stamp(failed).error.reason == "x"


def test_countersigned_head_is_remembered_and_kept_in_the_end(ledger: Path, witness: Witness) -> None:
    teller = Teller("node-1", lambda: AccountBook(opened(ledger)))
    assert teller.countersigned == ""
    head = read_head(told(teller.stamp(answer()))[words.HEAD])
    text = head_text(witness.countersign(head, []))
    teller.hear(text)
    assert read_countersigned(teller.countersigned).head == head
    teller.close()
    kept = opened(ledger)
    assert [entry.kind for entry in kept.verified()][-1] == "witnessed"
    kept.close()


def test_ledger_that_lacks_what_was_witnessed_is_an_older_copy(ledger: Path, witness: Witness, tmp_path: Path) -> None:
    older = tmp_path / "older.sqlite"
    older.write_bytes(ledger.read_bytes())
    shutil.copy(ledger.with_suffix(".pem"), older.with_suffix(".pem"))
    newer = Teller("node-1", lambda: AccountBook(opened(ledger)))
    accounts = AccountBook(opened(ledger))
    accounts.ledger.append("raise", {"account": "records", "epsilon": "2000", "because": "a test"})
    accounts.ledger.close()
    text = head_text(witness.countersign(read_head(told(newer.stamp(answer()))[words.HEAD]), []))
    newer.close()
    behind = Teller("node-1", lambda: AccountBook(opened(older)))
    with pytest.raises(RefusedError) as refused:
        behind.hear(text)
    assert refused.value.code is Refusal.LEDGER_BEHIND
    assert behind.countersigned == ""
    behind.close()


def test_witness_of_a_ledger_that_is_not_there_is_told_as_behind(ledger: Path, witness: Witness) -> None:
    teller = Teller("node-1", lambda: AccountBook(opened(ledger)))
    text = head_text(witness.countersign(read_head(told(teller.stamp(answer()))[words.HEAD]), []))
    teller.close()
    empty = Teller("node-1", lambda: None)
    with pytest.raises(RefusedError, match="there is none here"):
        empty.hear(text)
    empty.hear("")  # a server that has witnessed nothing
    assert empty.tasks() == frozenset()
    with pytest.raises(LedgerError):
        empty.stamp(answer())
    empty.close()


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"head": {}, "server_key": "", "server_signature": ""})])
def test_witness_that_cannot_be_read_is_refused(teller: Teller, text: str) -> None:
    with pytest.raises(LedgerError):
        teller.hear(text)


def test_tasks_are_those_of_the_data_sets_that_are_declared(teller: Teller) -> None:
    assert teller.tasks() == frozenset({"synthetic"})
