"""What a process signed it need not verify; everything else is verified for real, and an auditor verifies all of it."""

import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.keys import SigningKey, is_signed
from privet.privacy.budget.ledger import ENTRY, Ledger
from privet.privacy.budget.own_signatures import OwnSignatures
from privet.privacy.budget.witness import Head, Witness
from privet.privacy.errors import LedgerError

MESSAGE = b"a message"
KEY = SigningKey.generate()
SIGNATURE = KEY.sign(ENTRY, MESSAGE)
FRAMED = b"privet/ledger-entry/v1\0" + MESSAGE


class Forgetful(OwnSignatures):
    """A memory that says yes to one thing only: what it is told to."""

    def __init__(self, believed: tuple[str, bytes, str]) -> None:
        super().__init__()
        self.remember(*believed)


def test_what_a_key_has_signed_is_remembered_and_good() -> None:
    assert KEY.own.has(KEY.public, FRAMED, SIGNATURE)
    assert KEY.is_signed(KEY.public, ENTRY, MESSAGE, SIGNATURE)
    assert is_signed(KEY.public, ENTRY, MESSAGE, SIGNATURE)


@given(st.data())
def test_any_changed_character_is_not_remembered_and_verified_for_real(data: st.DataObject) -> None:
    parts = [KEY.public, ENTRY, MESSAGE.decode(), SIGNATURE]
    which = data.draw(st.integers(0, 3))
    place = data.draw(st.integers(0, len(parts[which]) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda one: one != parts[which][place]))
    parts[which] = parts[which][:place] + other + parts[which][place + 1 :]
    public, purpose, message, signature = parts
    framed = b"privet/" + purpose.encode() + b"/v1\0" + message.encode()
    assert not KEY.own.has(public, framed, signature)
    assert not KEY.is_signed(public, purpose, message.encode(), signature)


@pytest.mark.parametrize("moved", [1, 2, 64, 128])
def test_bytes_that_move_from_one_part_to_another_are_others(moved: int) -> None:
    """Key, signature and message are one text in the memory's digest: no other split of it is remembered."""
    assert not KEY.own.has(KEY.public[:-moved], FRAMED, KEY.public[-moved:] + SIGNATURE)
    assert not KEY.own.has(KEY.public, SIGNATURE[-moved:].encode() + FRAMED, SIGNATURE[:-moved])


MALFORMED = {
    "accented key": ("é" * 64, SIGNATURE),
    "accented signature": (KEY.public, "é" * 128),
    "surrogates": ("\ud800" * 64, SIGNATURE),
    "nothing": ("", ""),
    "zeros": (KEY.public, "0" * 128),
    "capital key": (KEY.public.upper() + " ", SIGNATURE),
    "capital signature": (KEY.public, SIGNATURE.upper() + " "),
}


@pytest.mark.parametrize(("public", "signature"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_key_or_signature_is_just_not_good(public: str, signature: str) -> None:
    assert not KEY.is_signed(public, ENTRY, MESSAGE, signature)


def test_what_was_only_verified_is_not_remembered() -> None:
    other = SigningKey.generate()
    assert other.is_signed(KEY.public, ENTRY, MESSAGE, SIGNATURE)
    assert not other.own.has(KEY.public, FRAMED, SIGNATURE)


def test_memory_is_bounded_and_what_is_forgotten_is_verified() -> None:
    key = SigningKey.generate()
    key.own = OwnSignatures(most=2)
    signatures = [key.sign(ENTRY, str(number).encode()) for number in range(6)]
    remembered = [
        key.own.has(key.public, b"privet/ledger-entry/v1\0" + str(number).encode(), signature)
        for number, signature in enumerate(signatures)
    ]
    assert remembered == [False, False, True, True, True, True]
    assert key.is_signed(key.public, ENTRY, b"0", signatures[0])


def test_keys_that_share_a_memory_know_one_anothers_signatures() -> None:
    own = OwnSignatures()
    one, other = (SigningKey(Ed25519PrivateKey.generate(), own) for _ in range(2))
    assert other.own.has(one.public, FRAMED, one.sign(ENTRY, MESSAGE))


def test_entry_that_another_process_wrote_is_verified(tmp_path: Path) -> None:
    """The reader's key is the same and its memory is empty: a wrong signature shows."""
    key = SigningKey.load_or_create(tmp_path / "key.pem")
    path = tmp_path / "ledger.sqlite"
    reader = AccountBook(Ledger.open(path, purpose="simulation", owner="ward", key=key))
    stranger = SigningKey.load_or_create(tmp_path / "key.pem")
    writer = Ledger.open(path, purpose="simulation", owner="ward", key=stranger)
    writer.append("note", {"a": "b"})
    reader.catch_up()
    writer.key = SigningKey.generate()
    writer.append("note", {"a": "c"})
    with pytest.raises(LedgerError, match="entry 3 is not what this institution wrote"):
        reader.catch_up()


def test_entry_that_was_changed_in_the_file_is_found_by_who_signed_it(tmp_path: Path) -> None:
    """The signature is remembered, of other bytes."""
    path, key = tmp_path / "ledger.sqlite", SigningKey.generate()
    ledger = Ledger.open(path, purpose="simulation", owner="ward", key=key)
    ledger.append("note", {"a": "b"})
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER no_update")
    connection.execute("UPDATE entries SET body = replace(body, 'b', 'c') WHERE sequence = 2")
    connection.close()
    with pytest.raises(LedgerError, match="entry 2 is not what this institution wrote"):
        AccountBook(ledger)


def test_auditor_verifies_what_this_very_process_remembers(tmp_path: Path) -> None:
    """A memory that were wrong would fool nobody but its owner."""
    path, key = tmp_path / "ledger.sqlite", SigningKey.generate()
    ledger = Ledger.open(path, purpose="simulation", owner="ward", key=key)
    entry = ledger.append("note", {"a": "b"})
    forged = "0" * 128
    key.own = Forgetful((key.public, b"privet/ledger-entry/v1\0" + bytes.fromhex(entry.hash), forged))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER no_update")
    connection.execute("UPDATE entries SET signature = ? WHERE sequence = 2", (forged,))
    connection.close()
    AccountBook(ledger)  # its owner's process is fooled: so much for the attack
    ledger.close()
    audit = audit_ledger(path, public_key=key.public)
    assert ("signature", 2) in [(found.code, found.entry) for found in audit.violations]


def test_witness_verifies_a_head_that_was_signed_elsewhere(tmp_path: Path) -> None:
    path, key = tmp_path / "ledger.sqlite", SigningKey.generate()
    ledger = Ledger.open(path, purpose="simulation", owner="ward", key=key)
    entry = ledger.append("note", {"a": "b"})
    honest = Head.of("ward", entry, key)
    forged = Head("ward", key.public, entry.sequence, entry.hash, Head.of("ward", entry, KEY).signature)
    witness = Witness(tmp_path / "witness.jsonl", "ward", SigningKey.generate())
    with pytest.raises(LedgerError, match="not signed by it"):
        witness.countersign(forged, [])
    countersigned = witness.countersign(honest, [])
    assert countersigned.is_signed()
    assert countersigned.is_signed(key.is_signed)
