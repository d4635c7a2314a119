"""`privet join` against a real server: the root is pinned before anything is sent, and a second attempt is no harm."""

import io
import json
import logging
import socket
import ssl
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from parties import Federation, TestClock, make_federation
from privet.__main__ import run
from privet.client.join import fetched_root, join
from privet.client.preflight import preflight
from privet.privacy.channel.dial import dial
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.channel.member import IDENTITY, Member, has_joined
from privet.privacy.errors import ChannelError, EnrolmentError


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = make_federation(tmp_path / "coordinator")
    with made.serving():
        yield made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@contextmanager
def impostor(fake: Federation, tmp_path: Path, more: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A server that shows another federation's chain and `more` after it; its address, and all that it is sent."""
    with fake.serving():
        chain = (fake.home.folder / "server-chain.pem").read_bytes()
    (tmp_path / "shown.pem").write_bytes(chain + more)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "shown.pem", fake.home.folder / "server-key.pem")
    context.set_alpn_protocols(["h2"])
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), raw, context.wrap_socket(raw, server_side=True) as connection:
                while content := connection.recv(65536):
                    received.append(content)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"localhost:{listener.getsockname()[1]}", received
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def test_institution_joins_with_a_token(federation: Federation, tmp_path: Path) -> None:
    joined = join(federation.token("st-marys"), tmp_path / "m")
    assert Member.load(tmp_path / "m").certificate == joined.member.certificate
    assert joined.member.root == federation.home.root
    assert abs(joined.clock_difference) < 60
    federation.members.node_id("st-marys")


def test_root_that_does_not_match_the_token(tmp_path: Path) -> None:
    real, fake = make_federation(tmp_path / "real"), make_federation(tmp_path / "fake")
    with impostor(fake, tmp_path, fake.home.root) as (address, received):
        with pytest.raises(ChannelError, match="nothing was sent"):
            join(replace(real.token("st-marys"), enrolment_address=address), tmp_path / "m")
        assert received == []
    assert not (tmp_path / "m").exists()


def test_server_that_shows_the_right_root_and_cannot_use_it(tmp_path: Path) -> None:
    """A root is public: an impostor may show it, and then fails in the handshake that trusts it alone."""
    real, fake = make_federation(tmp_path / "real"), make_federation(tmp_path / "fake")
    token = real.token("st-marys")
    with impostor(fake, tmp_path, real.home.root) as (address, received):
        assert fetched_root(replace(token, enrolment_address=address)) == real.home.root
        with pytest.raises(ChannelError, match="cannot be reached"):
            join(replace(token, enrolment_address=address), tmp_path / "m")
        assert not any(token.secret in content for content in received)
    assert not has_joined(tmp_path / "m")


def test_port_that_speaks_no_tls(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "c")
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
    token = replace(federation.token("a"), enrolment_address=f"localhost:{listener.getsockname()[1]}")
    with pytest.raises(ChannelError, match="cannot be reached"):
        join(token, tmp_path / "m")
    listener.close()


def test_server_that_is_not_there(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "c")
    with pytest.raises(ChannelError, match="cannot be reached"):
        join(federation.token("a"), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_altered_token(federation: Federation, tmp_path: Path) -> None:
    token = federation.token("st-marys")
    with pytest.raises(EnrolmentError, match="the token was not accepted"):
        join(replace(token, secret=b"x" * 16), tmp_path / "m")
    with pytest.raises(ChannelError, match="nothing was sent"):
        join(replace(token, root_fingerprint=b"x" * 16), tmp_path / "n")
    assert not has_joined(tmp_path / "m")


def test_token_whose_name_was_altered(federation: Federation, tmp_path: Path) -> None:
    """The server goes by its own record, and the member finds that it is not the one that the token says."""
    token = replace(federation.token("st-marys"), name="st-annes")
    with pytest.raises(ChannelError):
        join(token, tmp_path / "m")
    assert not has_joined(tmp_path / "m")
    assert [one.name for one in federation.members.all()] == ["st-marys"]


def test_token_whose_federation_was_altered(federation: Federation, tmp_path: Path) -> None:
    token = replace(federation.token("st-marys"), federation="lungs")
    with pytest.raises(ChannelError, match="not of federation lungs"):
        join(token, tmp_path / "m")
    assert federation.members.all() == ()  # nothing was sent


def test_answer_was_lost_and_the_same_command_asks_again(federation: Federation, tmp_path: Path) -> None:
    token, key = federation.token("st-marys"), IdentityKey.generate()
    key.save(tmp_path / "m" / "key.pem")
    federation.registrar.join(token.secret, key.csr())  # the server's side of an attempt whose answer never came
    assert join(token, tmp_path / "m").member.key.fingerprint == key.fingerprint


def test_nobody_joins_twice_in_one_folder(federation: Federation, tmp_path: Path) -> None:
    join(federation.token("st-marys"), tmp_path / "m")
    before = (tmp_path / "m" / "chain.pem").read_bytes()
    with pytest.raises(EnrolmentError, match="has joined already"):
        join(federation.token("st-annes"), tmp_path / "m")
    assert (tmp_path / "m" / "chain.pem").read_bytes() == before


@pytest.mark.parametrize(("minutes", "word"), [(6, "ahead of"), (-6, "behind")])
def test_clock_that_is_off_is_named(federation: Federation, tmp_path: Path, minutes: int, word: str) -> None:
    token = federation.token("st-marys")
    with pytest.raises(ChannelError, match=f"clock is 3.. s {word}"):
        join(token, tmp_path / "m", clock=TestClock(timedelta(minutes=minutes)))
    assert not has_joined(tmp_path / "m")
    join(token, tmp_path / "m")  # after the clock was set, the same token and key go on


def test_server_certificate_of_another_day_is_a_matter_of_clocks(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "c", clock=TestClock(timedelta(days=-3)))
    with federation.serving(), pytest.raises(ChannelError, match="not valid at this machine's time") as caught:
        join(federation.token("st-marys"), tmp_path / "m")
    assert "clock" in caught.value.remedy


def test_preflight_says_when_the_main_port_is_shut(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "c")
    with federation.serving():
        joined = join(federation.token("st-marys"), tmp_path / "m")
        assert all(check.is_fine for check in preflight(joined, tmp_path))
    checks = {check.name: check for check in preflight(joined, tmp_path, seconds=0.5)}
    assert not checks["main port"].is_fine
    assert "cannot be reached" in checks["main port"].text


def test_join_from_the_command_line(federation: Federation, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["join", federation.token("st-marys").text(), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "joined hearts as node st-marys" in said
    fingerprint = Member.load(home / IDENTITY).key.fingerprint
    assert f"\nkey fingerprint {fingerprint}\n" in said  # for the institutions that count their peers
    for name in ("clock", "versions", "disk", "GPU", "main port"):
        assert f"\n{name}: " in said
    assert home.stat().st_mode & 0o777 == 0o700
    allowed = tomllib.loads((home / "node.toml").read_text())
    assert "operators" in allowed
    assert not any(allowed.values())


def test_join_keeps_a_node_file_that_is_there(federation: Federation, home: Path) -> None:
    home.mkdir()
    (home / "node.toml").write_text("[operators]\n")
    assert run(["join", federation.token("st-marys").text(), "--yes"]) == 0
    assert (home / "node.toml").read_text() == "[operators]\n"


def test_operator_is_shown_its_fingerprint(
    federation: Federation, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["join", federation.token("alice", Role.OPERATOR).text(), "--yes"]) == 0
    assert Member.load(home / IDENTITY).key.fingerprint in capsys.readouterr().out
    assert not (home / "node.toml").exists()


def test_join_reads_the_token_from_standard_input(
    federation: Federation, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(federation.token("st-marys").text() + "\n"))
    assert run(["join", "-", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["name"] == "st-marys"
    assert all(check["fine"] for check in said["checks"])


def test_join_encrypts_the_key_where_there_is_a_passphrase(federation: Federation, home: Path, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("a passphrase\n")
    assert run(["join", federation.token("st-marys").text(), "--yes", "--passphrase-file", str(tmp_path / "pass")]) == 0
    assert b"ENCRYPTED" in (home / IDENTITY / "key.pem").read_bytes()
    assert Member.load(home / IDENTITY, b"a passphrase").identity.name == "st-marys"


@pytest.mark.parametrize("text", ["", "privet1-", "not-a-token", "privet1-aaaaaaaa"])
def test_join_with_what_is_no_token(home: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["join", text, "--yes"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "\ntry: " in said
    assert not home.exists()


def test_join_asks_before_it_goes_on(
    federation: Federation, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["join", federation.token("st-marys").text()]) == 2
    assert "--yes" in capsys.readouterr().err
    assert not home.exists()


def test_no_output_and_no_log_holds_a_secret(
    federation: Federation, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = federation.token("st-marys")
    assert run(["join", token.text(), "--yes"]) == 0
    assert run(["join", token.text(), "--yes"]) == 2
    said = capsys.readouterr()
    key = (home / IDENTITY / "key.pem").read_text().splitlines()[1]
    for secret in (token.text(), token.secret.hex(), key):
        assert secret not in said.out + said.err + caplog.text


def test_member_that_was_away_for_a_weekend_dials_again(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "c", clock=TestClock(timedelta(days=-4)))
    member = federation.member("st-marys", tmp_path / "m")
    federation.clock.shift = timedelta()
    with federation.serving():
        dial(member).close()
    assert member.certificate.not_after > datetime.now(UTC)
