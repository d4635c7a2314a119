"""The coordinator's commands, unattended, as the README shows them."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from privet.__main__ import run
from privet.privacy.channel.authority import IssuingAuthority, RootAuthority
from privet.privacy.channel.identities import Role, verified
from privet.privacy.channel.member import IDENTITY, Member
from privet.privacy.channel.token import Token
from privet.server.federation_home import FEDERATION, FederationHome


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    (tmp_path / "pass").write_text("a passphrase\n")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a federation, made once: hardening the root's passphrase takes its time."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "pass").write_text("a passphrase\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVET_HOME", str(folder / "home"))
        assert init(folder / "home") == 0
    return folder / "home"


@pytest.fixture
def federation(home: Path, example: Path) -> Path:
    """A home of one's own with that federation."""
    shutil.copytree(example, home)
    return home


def init(home: Path, *more: str) -> int:
    passphrase = str(home.parent / "pass")
    return run(
        ["federation", "init", "hearts", "--address", "fl.example.org:9443", "--passphrase-file", passphrase, *more]
    )


def test_init_makes_a_federation_and_its_first_operator(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(home) == 0
    said = capsys.readouterr().out
    folder = home / FEDERATION
    made = FederationHome.load(folder)
    assert (made.facts.address, made.facts.enrolment_address) == ("fl.example.org:9443", "fl.example.org:9444")
    for needed in ("root-key.pem, encrypted; move it offline", "open TCP ports 9443, 9444", "next: privet server"):
        assert needed in said
    operator = Member.load(home / IDENTITY)
    assert (operator.identity.role, operator.identity.name) == (Role.OPERATOR, "coordinator")
    assert operator.key.fingerprint in said
    assert verified(operator.chain, made.root, datetime.now(UTC), Role.OPERATOR)


def test_init_keeps_every_key_to_its_owner(home: Path) -> None:
    assert init(home) == 0
    keys = [path for path in home.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in keys} == {"root-key.pem", "issuing-key.pem", "server-key.pem", "key.pem"}
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (home, home / FEDERATION, home / IDENTITY)} == {0o700}
    assert b"ENCRYPTED" in (home / FEDERATION / "root-key.pem").read_bytes()


def test_second_init_in_one_home_changes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(home) == 0
    before = (home / FEDERATION / "root.pem").read_bytes()
    assert init(home) == 2
    assert "is there already" in capsys.readouterr().err
    assert (home / FEDERATION / "root.pem").read_bytes() == before


def test_init_without_a_passphrase(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federation", "init", "hearts", "--address", "fl.example.org:9443"]) == 2
    assert "--passphrase-file" in capsys.readouterr().err
    assert not (home / FEDERATION).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["Hearts", "--address", "a:1"],
        ["hearts", "--address", "a"],
        ["hearts", "--address", "a:65535"],
        ["hearts", "--address", "a:1", "--enrolment-address", "a:1"],
        ["hearts", "--address", "a:1", "--operator", "Alice Smith"],
    ],
)
def test_init_with_what_cannot_be_meant(home: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federation", "init", *arguments, "--passphrase-file", str(home.parent / "pass")]) == 2
    assert re.fullmatch(r"error: .+\ntry: .+\n", capsys.readouterr().err)
    assert not home.exists()


def test_invitation_prints_the_token_alone(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, role, name in (
        (["st-marys"], Role.NODE, "st-marys"),
        (["--operator", "alice"], Role.OPERATOR, "alice"),
        (["--auditor", "dpo"], Role.AUDITOR, "dpo"),
    ):
        assert run(["invite", *arguments]) == 0
        said = capsys.readouterr()
        token = Token.of(said.out)
        assert said.out == token.text() + "\n"
        assert (token.role, token.name, token.address) == (role, name, "fl.example.org:9443")
        assert token.secret.hex() not in said.err
        assert token.text() not in said.err


def test_invitation_as_json(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invite", "st-marys", "--valid", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Token.of(said["token"]).name == "st-marys"
    left = datetime.fromisoformat(said["expires"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < left < timedelta(hours=2, seconds=1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--operator", "b"],
        ["--operator", "a", "--auditor", "b"],
        ["St. Mary"],
        ["a", "--valid", "0"],
        ["a", "--valid", "nan"],
        ["a", "--valid", "1e300"],
        ["a", "--valid", "721"],
        ["coordinator"],
        ["--operator", "coordinator"],
    ],
)
def test_invitation_that_cannot_be_meant(
    federation: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["invite", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: .+\ntry: .+\n", said.err)


@pytest.mark.parametrize("command", [["invite", "a"], ["revoke", "a", "--because", "b"], ["federation", "show"]])
def test_command_where_there_is_no_federation(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    assert "privet federation init" in capsys.readouterr().err
    assert not home.exists()


def test_members_are_listed_and_revoked(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invite", "st-marys"]) == 0
    assert run(["revoke", "coordinator", "--because", "a successor"]) == 0
    capsys.readouterr()
    assert run(["federation", "members"]) == 0
    said = capsys.readouterr().out
    assert "coordinator: operator, revoked (a successor)" in said
    assert "st-marys: invited as node until" in said
    assert run(["federation", "members", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["standing"] for one in listed["members"]] == ["revoked"]
    assert [one["name"] for one in listed["invited"]] == ["st-marys"]


def test_stranger_is_not_revoked(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["revoke", "nobody", "--because", "a test"]) == 2
    assert "nobody is not a member" in capsys.readouterr().err


def test_show_says_where_keys_lie_and_until_when(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federation", "show", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["name"] == "hearts"
    assert said["root_key"].endswith("root-key.pem")
    (federation / FEDERATION / "root-key.pem").rename(federation / "offline.pem")
    assert run(["federation", "show"]) == 0
    assert "root key: not here" in capsys.readouterr().out


def test_everything_but_reissue_works_without_the_root_key(
    federation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (federation / FEDERATION / "root-key.pem").rename(federation / "offline.pem")
    assert run(["invite", "st-marys"]) == 0
    passphrase = ["--passphrase-file", str(federation.parent / "pass")]
    assert run(["federation", "reissue", *passphrase]) == 2
    assert "--root-key" in capsys.readouterr().err
    before = FederationHome.load(federation / FEDERATION).issuing()
    assert run(["federation", "reissue", "--root-key", str(federation / "offline.pem"), *passphrase]) == 0
    after: IssuingAuthority = FederationHome.load(federation / FEDERATION).issuing()
    assert after.pem != before.pem
    root = RootAuthority.load(federation / FEDERATION / "root.pem", federation / "offline.pem", b"a passphrase")
    after.certificate.verify_directly_issued_by(root.certificate)
    assert FederationHome.load(federation / FEDERATION).issuers() == (after.pem, before.pem)


def test_reissue_with_a_wrong_passphrase_changes_nothing(federation: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong\n")
    before = FederationHome.load(federation / FEDERATION).issuers()
    assert run(["federation", "reissue", "--passphrase-file", str(tmp_path / "wrong")]) == 1
    assert FederationHome.load(federation / FEDERATION).issuers() == before


def test_database_of_the_environment_is_that_of_every_command(
    federation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a token goes into the file beside it, and the server knows nothing of it."""
    monkeypatch.setenv("PRIVET_DATABASE", f"sqlite:///{federation.parent / 'elsewhere.sqlite'}")
    assert run(["invite", "st-marys"]) == 0
    capsys.readouterr()
    assert run(["federation", "members"]) == 0
    assert "st-marys: invited as node" in capsys.readouterr().out
    monkeypatch.delenv("PRIVET_DATABASE")
    assert run(["federation", "members"]) == 0
    assert "st-marys" not in capsys.readouterr().out
