"""Recovery after a restored backup: what the witness holds and the ledger lacks is charged once, nothing forged is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from institution import NOW, PLAN, UNCLAIMED, begin, guard, rows, submission
from privet.privacy.budget.accounts import AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.charge import charged_events
from privet.privacy.budget.filters import renyi_cost
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Entry
from privet.privacy.budget.recovery import recover
from privet.privacy.budget.witness import COUNTERSIGNED, HEAD, Countersigned, Head, Witness, read_witness
from privet.privacy.errors import BudgetError, LedgerError, Refusal, RefusedError
from privet.privacy.home import Home

TERMS = AccountTerms("record", Decimal(10), Decimal("1e-4"), allows_none=True)
SERVER = SigningKey.generate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    root = tmp_path / "node"
    book = Home(root).create_book(None)
    book.open_with_dataset(TERMS, DeclaredDataset("ward7", "digits", "/data/ward7.csv", 100, "ward7"))
    book.ledger.close()
    return root


def show_witness(keeper: Guard, path: Path) -> Witness:
    """The node shows its head and its new charges to the server, as with every answer."""
    witness = Witness(path, "ward", SERVER)
    newest = witness.newest()
    charges = keeper.charges_after(newest.head.sequence if newest else 0)
    witness.countersign(keeper.head("ward"), [asdict(entry) for entry in charges])
    return witness


def backup(home: Path) -> Path:
    copy = home.with_name("backup")
    shutil.copytree(home, copy)
    return copy


def restore(home: Path, copy: Path) -> None:
    shutil.rmtree(home)
    shutil.copytree(copy, home)


@pytest.fixture
def rolled_back(home: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A home that was put back to before two runs that its server witnessed."""
    copy = backup(home)
    accounts, keeper = guard(home)
    for run_id in ("a", "b"):
        keeper.admit(submission(run_id), NOW)
        begin(keeper, submission(run_id))
        show_witness(keeper, tmp_path / "witness.jsonl")
    accounts.ledger.close()
    restore(home, copy)
    return home, tmp_path / "witness.jsonl"


def test_every_witnessed_charge_is_charged_again(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    accounts, keeper = guard(home)
    assert accounts.book.accounts["ward7"].spent_epsilon == 0
    newest = Witness(witness, "ward", SERVER).newest()
    assert newest is not None
    with pytest.raises(RefusedError, match="older copy"):
        keeper.check_witnessed(newest)
    recovered = recover(accounts, witness)
    assert [charge.run for charge in recovered.charges] == ["a", "b"]
    assert recovered.is_behind
    keeper.check_witnessed(newest)
    bodies = [entry.content for entry in accounts.ledger.entries() if entry.kind == "recovered-charge"]
    lines = [json.loads(line) for line in witness.read_text().splitlines()]
    assert bodies == [json.loads(line["charge"]["body"]) for line in lines if "charge" in line]
    assert accounts.book.accounts["ward7"].spent_epsilon == sum(charge.epsilon for charge in recovered.charges) > 0
    *_, last = (entry for entry in accounts.ledger.verified() if entry.kind != "lost")
    assert (last.kind, last.content) == (
        "recovered",
        {"head_sequence": str(newest.head.sequence), "head_hash": newest.head.hash},
    )


def test_recovered_node_is_countersigned_and_its_new_charge_reported(rolled_back: tuple[Path, Path]) -> None:
    """The very next charge has a number that the witness has not seen; with a gap it would never be told of it."""
    home, witness = rolled_back
    accounts, keeper = guard(home)
    recover(accounts, witness)
    keeper.admit(submission("c"), NOW)
    told = show_witness(keeper, witness)
    newest = told.newest()
    assert newest is not None
    assert (newest.head.sequence, newest.head.hash) == head_of(keeper)
    assert [json.loads(charge["body"])["run"] for charge in read_witness(witness)[1].values()] == ["a", "b", "c"]
    keeper.check_witnessed(newest)


def test_head_that_a_server_made_up_is_none_of_this_ledger(rolled_back: tuple[Path, Path]) -> None:
    """Signed by both as it should be, but under a key of the server's own: it must not stop the node as `behind`."""
    _, keeper = guard(rolled_back[0])
    made_up, digest = SigningKey.generate(), "ab" * 32
    unsigned = Head("ward", made_up.public, 900, digest, "")
    head = Head("ward", made_up.public, 900, digest, made_up.sign(HEAD, unsigned.message()))
    forged = Countersigned(head, SERVER.public, SERVER.sign(COUNTERSIGNED, head.message()))
    assert forged.is_signed()
    with pytest.raises(RefusedError, match="this ledger's key did not sign") as refused:
        keeper.check_witnessed(forged)
    assert refused.value.code is Refusal.MALFORMED_REQUEST


def head_of(keeper: Guard) -> tuple[int, str]:
    head = keeper.head("ward")
    return head.sequence, head.hash


def test_numbers_that_were_lost_are_used_up(home: Path, tmp_path: Path) -> None:
    copy, path = backup(home), tmp_path / "witness.jsonl"
    accounts, keeper = guard(home)
    begin_new(keeper, "a")
    for number in (2, 3):
        begin(keeper, submission("a"), number)
    begin_new(keeper, "b")
    newest = show_witness(keeper, path).newest()
    assert newest is not None
    accounts.ledger.close()
    restore(home, copy)
    accounts, _ = guard(home)
    assert len(list(accounts.ledger.entries())) == 3
    recover(accounts, path)
    entries = list(accounts.ledger.verified())
    assert [entry.kind for entry in entries[3:]] == ["recovered-charge"] * 2 + ["recovered"] + ["lost"] * 3
    assert [entry.content for entry in entries[6:]] == [{"entry": "7"}, {"entry": "8"}, {"entry": "9"}]
    assert entries[-1].sequence == newest.head.sequence


def test_ledger_that_grew_beyond_the_witnessed_number_lost_none(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    accounts, keeper = guard(home)
    for number in range(3):
        begin_new(keeper, f"later-{number}")
    recover(accounts, witness)
    assert "lost" not in [entry.kind for entry in accounts.ledger.entries()]


def test_recovery_that_fails_midway_leaves_nothing(
    rolled_back: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, witness = rolled_back
    accounts, _ = guard(home)
    append, before = accounts.ledger.append, rows(home)

    def failing(kind: str, body: Any) -> Entry:
        if kind == "lost":
            raise KeyboardInterrupt
        return append(kind, body)

    monkeypatch.setattr(accounts.ledger, "append", failing)
    with pytest.raises(KeyboardInterrupt):
        recover(accounts, witness)
    assert rows(home) == before


def test_recovering_twice_changes_nothing_more(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    recover(guard(home)[0], witness)
    before = rows(home)
    again = recover(guard(home)[0], witness)
    assert (again.charges, again.is_behind) == ((), False)
    assert rows(home) == before


def test_ledger_that_lacks_nothing_is_left_alone(home: Path, tmp_path: Path) -> None:
    accounts, keeper = guard(home)
    keeper.admit(submission("a"), NOW)
    show_witness(keeper, tmp_path / "witness.jsonl")
    before = rows(home)
    assert not recover(accounts, tmp_path / "witness.jsonl").is_behind
    assert rows(home) == before


def test_recovered_run_is_not_continued(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    accounts, keeper = guard(home)
    recover(accounts, witness)
    with pytest.raises(RefusedError, match="recovered from the witness"):
        keeper.admit(submission("a"), NOW)


def test_run_that_was_charged_in_both_lives_counts_twice(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    accounts, keeper = guard(home)
    keeper.admit(submission("a"), NOW)
    once = accounts.book.accounts["ward7"].spent_epsilon
    assert len(recover(accounts, witness).charges) == 2
    assert accounts.book.accounts["ward7"].spent_epsilon == 3 * once
    assert recover(accounts, witness).charges == ()


def test_restored_again_to_the_older_copy_still_counts_once(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    copy = home.with_name("backup")
    accounts, keeper = guard(home)
    recover(accounts, witness)
    for number in range(3):  # until the ledger is longer than what was witnessed
        begin_new(keeper, f"later-{number}")
    show_witness(keeper, witness)
    spent = accounts.book.accounts["ward7"].spent_epsilon
    accounts.ledger.close()
    restore(home, copy)
    accounts, _ = guard(home)
    recover(accounts, witness)
    assert accounts.book.accounts["ward7"].spent_epsilon <= spent
    assert {"a", "b"} <= set(accounts.book.runs)
    assert recover(accounts, witness).charges == ()


def begin_new(keeper: Guard, run_id: str) -> None:
    keeper.admit(submission(run_id), NOW)
    begin(keeper, submission(run_id))


def test_unclaimed_run_voids_the_account_again(home: Path, tmp_path: Path) -> None:
    copy = backup(home)
    accounts, keeper = guard(home)
    keeper.admit(submission("open", UNCLAIMED), NOW)
    show_witness(keeper, tmp_path / "witness.jsonl")
    accounts.ledger.close()
    restore(home, copy)
    accounts, _ = guard(home)
    recover(accounts, tmp_path / "witness.jsonl")
    assert accounts.book.accounts["ward7"].is_void


def test_account_that_the_backup_lost_is_opened_first(rolled_back: tuple[Path, Path], tmp_path: Path) -> None:
    """A charge without its account would make the ledger unreadable: refused before anything is appended."""
    home, witness = rolled_back
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(home / "key.pem", other / "key.pem")
    accounts = Home(other).create_book(None)
    with pytest.raises(BudgetError, match="account ward7, which this ledger lacks"):
        recover(accounts, witness)
    assert [row[2] for row in rows(other)] == ["opened"]
    asked = submission("a")
    assert asked.claim is not None
    events = charged_events(asked.plan, asked.claim.noise_multiplier)
    account = accounts.open_account("ward7", AccountTerms("record", Decimal(10), Decimal("1e-4"), "renyi", events))
    assert account.alpha is not None
    assert len(recover(accounts, witness).charges) == 2
    assert accounts.book.accounts["ward7"].spent_divergence == 2 * renyi_cost(events, account.alpha) > 0


def test_charge_at_a_weaker_unit_than_the_account_is_refused(rolled_back: tuple[Path, Path], tmp_path: Path) -> None:
    home, witness = rolled_back
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(home / "key.pem", other / "key.pem")
    accounts = Home(other).create_book(None)
    accounts.open_account("ward7", AccountTerms("node", Decimal(10), Decimal("1e-4")))
    before = rows(other)
    with pytest.raises(BudgetError, match="charged per record, account ward7 protects each node"):
        recover(accounts, witness)
    assert rows(other) == before


def changed_charge(change: Callable[[dict[str, Any]], None]) -> Callable[[list[dict[str, Any]]], None]:
    def apply(lines: list[dict[str, Any]]) -> None:
        change(next(line["charge"] for line in lines if "charge" in line))

    return apply


def changed_head(**values: object) -> Callable[[list[dict[str, Any]]], None]:
    def apply(lines: list[dict[str, Any]]) -> None:
        next(line["head"]["head"] for line in lines if "head" in line).update(values)

    return apply


def _forged(lines: list[dict[str, Any]]) -> None:
    """A whole charge, well formed, signed by another key."""
    stranger, charge = SigningKey.generate(), next(line["charge"] for line in lines if "charge" in line)
    body = charge["body"].replace('"run":"a"', '"run":"z"')
    assert body != charge["body"]
    entry = Entry(charge["sequence"], charge["time"], charge["kind"], body, charge["previous"], "", "")
    digest = entry.expected_hash()
    charge.update(body=body, hash=digest, signature=stranger.sign("ledger-entry", bytes.fromhex(digest)))


def _foreign(lines: list[dict[str, Any]]) -> None:
    """The witness of another institution, in good order."""
    stranger = SigningKey.generate()
    entry = Entry(9, "t", "charge", "{}", "0" * 64, "1" * 64, "")
    for line in lines:
        if "head" in line:
            line["head"]["head"] = asdict(Head.of("ward", entry, stranger))


ATTACKS: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "charge-with-a-smaller-epsilon": (
        changed_charge(lambda c: c.update(body=c["body"].replace('"epsilon":"', '"epsilon":"0'))),
        "is not what this institution wrote",
    ),
    "charge-with-another-sequence": (changed_charge(lambda c: c.update(sequence=77)), "is not what this institution"),
    "charge-of-another-kind": (changed_charge(lambda c: c.update(kind="raise")), "is not what this institution wrote"),
    "charge-without-signature": (
        changed_charge(lambda c: c.update(signature="")),
        "is not what this institution wrote",
    ),
    "charge-with-a-hash-that-is-none": (changed_charge(lambda c: c.update(hash="zz")), "is not what this institution"),
    "charge-with-a-column-missing": (changed_charge(lambda c: c.pop("body")), "without all columns"),
    "charge-with-a-column-more": (changed_charge(lambda c: c.update(more="x")), "without all columns"),
    "charge-of-wrong-types": (changed_charge(lambda c: c.update(time=5)), "wrong types"),
    "charge-signed-by-another-key": (_forged, "is not what this institution wrote"),
    "head-of-another-key": (_foreign, "another key"),
    "head-of-another-number": (changed_head(sequence=1000), "is not signed by both"),
    "head-of-another-hash": (changed_head(hash="0" * 64), "is not signed by both"),
    "head-whose-number-is-a-text": (changed_head(sequence="x"), "is not signed by both"),
    "no-head": (lambda lines: lines.__delitem__(slice(1, None)), "holds no head"),
    "nothing": (lambda lines: lines.clear(), "holds no head"),
}


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_forged_witness_charges_nothing(rolled_back: tuple[Path, Path], attack: str) -> None:
    home, witness = rolled_back
    lines = [json.loads(line) for line in witness.read_text().splitlines()]
    change, told = ATTACKS[attack]
    change(lines)
    witness.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = rows(home)
    with pytest.raises(LedgerError, match=told):
        recover(guard(home)[0], witness)
    assert rows(home) == before


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"not json\n", b"[]\n", b'{"head": 5}\n', b'{"charge": {}}\n', b"5\n"]
)
def test_file_that_is_no_witness_charges_nothing(rolled_back: tuple[Path, Path], content: bytes) -> None:
    home, witness = rolled_back
    witness.write_bytes(content)
    before = rows(home)
    with pytest.raises(LedgerError):
        recover(guard(home)[0], witness)
    assert rows(home) == before


def test_line_torn_by_a_crash_of_the_server_is_left_out(rolled_back: tuple[Path, Path]) -> None:
    home, witness = rolled_back
    witness.write_text(witness.read_text() + '{"charge": {"seq')
    assert len(recover(guard(home)[0], witness).charges) == 2


def test_recovered_charge_that_never_began_here_is_never_released(rolled_back: tuple[Path, Path]) -> None:
    """What of it was carried out before the restore is unknown: expiry must not give it back."""
    home, witness = rolled_back
    accounts, keeper = guard(home)
    recover(accounts, witness)
    spent = accounts.book.accounts["ward7"].spent_epsilon
    later = NOW + timedelta(days=60)
    keeper.admit(submission("later", PLAN, now=later), later)
    assert accounts.book.accounts["ward7"].spent_epsilon > spent
    assert not [entry for entry in accounts.ledger.entries() if entry.kind == "release"]
