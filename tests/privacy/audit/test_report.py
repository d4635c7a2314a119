"""The auditor's page and commands: self-contained, escaped, every epsilon with its terms, honest exit codes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import x25519
from ledgers import Institution, rich_institution, written
from page_reader import Page
from privet.__main__ import run
from privet.privacy.audit.claims import claims_of, sentences, verdict
from privet.privacy.audit.keyfile import pem_of, read_public_key
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.audit.report import write_report
from privet.privacy.budget.keys import SigningKey
from privet.privacy.errors import LedgerError

HOSTILE = '"><script>alert(1)</script>'
EPSILONS = ("1.39", "15.00", "3.74", "10.00", "0.88", "0.76", "0.52")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institution]:
    made = rich_institution(tmp_path_factory.mktemp("house"))
    (made.folder / "key.pub").write_text(pem_of(made.key.public))
    yield made
    made.ledger.close()


def page_of(path: Path, tmp_path: Path, **given: str | Path) -> str:
    audit = audit_ledger(path, **given)  # type: ignore[arg-type]
    write_report(audit, claims_of(audit), tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def test_page_is_self_contained(house: Institution, tmp_path: Path) -> None:
    text = page_of(house.path, tmp_path, public_key=house.key.public, witness=house.witness_path)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not [
        attrs for _, attrs in page.tags if any(name.startswith("on") or name in ("src", "href") for name in attrs)
    ]
    keys = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(keys) == len(set(keys))


def test_every_epsilon_has_its_terms(house: Institution, tmp_path: Path) -> None:
    page = Page(page_of(house.path, tmp_path, public_key=house.key.public))
    seen = set()
    for block in page.closed_blocks:
        for epsilon in EPSILONS:
            if re.search(rf"(?<![\d.]){re.escape(epsilon)}(?!\d)", block):
                seen.add(epsilon)
                assert "delta" in block.lower(), block
                assert "record" in block, block
                assert "add-or-remove-one" in block, block
    assert {"1.39", "15.00", "3.74"} <= seen


def test_page_says_what_was_refused_raised_and_void(house: Institution, tmp_path: Path) -> None:
    text = " ".join(page_of(house.path, tmp_path, public_key=house.key.public).split())
    for words in ("ethics vote 2026-114", "covered by the larger only", "budget-exhausted", "Not witnessed", "void"):
        assert words in text
    assert "Self-consistent only" not in text
    assert "holds" in text


def test_page_shows_violations_first(house: Institution, tmp_path: Path) -> None:
    rows = house.rows()
    path = written(tmp_path / "bad.sqlite", rows[:5] + rows[6:])
    text = page_of(path, tmp_path)
    assert "does not hold" in text
    assert 0 < text.index('id="violations"') < text.index('id="accounts"')
    assert "entry 6 is missing" in text


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    house = Institution(tmp_path / "house", owner=HOSTILE, purpose="simulation")
    house.open()
    house.forge("raise", {"account": "ward", "epsilon": "11", "from": "10", "because": HOSTILE + "\u202e"})
    body = {"run": "r", "submission": "a" * 64, "dataset": "ward", "operator": "alice", "code": HOSTILE, "why": HOSTILE}
    house.forge("refused", body)
    house.forge(HOSTILE, {})
    text = page_of(house.path, tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "no evidence of protection" in text
    Page(text)


def test_verdict_says_what_was_not_given(house: Institution) -> None:
    assert verdict(audit_ledger(house.path)).endswith("self-consistent only (no key was given), not witnessed")
    whole = audit_ledger(house.path, public_key=house.key.public, witness=house.witness_path)
    assert "signed by the given key, witnessed up to entry" in verdict(whole)
    for account in claims_of(whole).accounts:
        for line in sentences(account):
            assert not re.search(r"epsilon (spent|limit) [\d.]+", line) or "at delta" in line


def test_command_prints_and_exits(house: Institution, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, report = str(house.folder / "key.pub"), tmp_path / "report.html"
    given = ["--key", key, "--witness", str(house.witness_path)]
    assert run(["audit", "ledger", str(house.path), *given, "--report", str(report)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("holds: ")
    assert "epsilon spent 1.39 at delta 2e-05 (unit: record, add-or-remove-one)" in out
    assert report.read_text().startswith("<!doctype html>")
    assert run(["audit", "ledger", str(house.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["holds"], told["witnessed"], told["signed_by_given_key"]) == (True, False, False)
    bad = written(tmp_path / "bad.sqlite", house.rows()[:5] + house.rows()[6:])
    assert run(["audit", "ledger", str(bad)]) == 1
    captured = capsys.readouterr()
    assert "violation: entry 7: numbering: entry 6 is missing before it" in captured.out
    assert "error: " in captured.err
    assert "try: " in captured.err
    assert run(["audit", "ledger", str(bad), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["violations"][0]["entry"] == 7


def test_command_refuses(house: Institution, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "ledger", str(house.path), "--report", str(house.path)]) == 2
    assert run(["audit", "ledger", str(tmp_path / "nowhere")]) == 1
    assert run(["audit", "ledger"]) == 2
    private = tmp_path / "key.pem"
    SigningKey.load_or_create(private)
    assert run(["audit", "ledger", str(house.path), "--key", str(private)]) == 1
    assert "a private key" in capsys.readouterr().err


def test_key_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = SigningKey.load_or_create(tmp_path / "key.pem")
    assert run(["audit", "key", "--home", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "PRIVATE" not in out
    (tmp_path / "handed-over").write_text(out)
    assert read_public_key(tmp_path / "handed-over") == key.public
    assert run(["audit", "key", "--home", str(tmp_path / "nowhere")]) == 1


def test_key_files(tmp_path: Path) -> None:
    public = SigningKey.generate().public
    path = tmp_path / "key"
    for text in (public, f" {public.upper()}\n", f"# told on the telephone\n{public}\n", pem_of(public)):
        path.write_text(text)
        assert read_public_key(path) == public
    other = x25519.X25519PrivateKey.generate().public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for content in (
        b"",
        b"no key",
        public[:-1].encode(),
        b"a" * 5000,
        other.public_bytes(serialization.Encoding.PEM, form),
    ):
        path.write_bytes(content)
        with pytest.raises(LedgerError):
            read_public_key(path)
