"""Enrolment and membership over real TLS: what callers get, what they learn when refused, and what the log says."""

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from parties import PASSPHRASE, Federation, TestClock, head_of, make_federation
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.authority import RootAuthority
from privet.privacy.channel.credentials import channel_credentials, enrolment_credentials
from privet.privacy.channel.dial import bring_up_to_date, dial
from privet.privacy.channel.identities import Certificate, Identity, IdentityKey, Role, verified
from privet.privacy.channel.member import Member
from privet.privacy.channel.renewal import RETURN, return_request, returning
from privet.privacy.channel.services import callable_of
from privet.privacy.errors import ChannelError
from privet.server.database import open_database
from privet.server.enrolment import LARGEST_MESSAGE, NOT_ACCEPTED, NOT_CERTIFIED, Failures, host_of
from privet.server.gate import DATABASE_AWAY
from privet.server.members import Standing
from privet.server.registrar import Registrar

SECONDS = 10.0
Ask = Callable[..., Any]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """One that began two months ago."""
    made = make_federation(tmp_path / "coordinator", clock=TestClock(timedelta(days=-60)))
    made.clock.shift = timedelta()
    with made.serving():
        yield made


@pytest.fixture
def ask(federation: Federation) -> Iterator[Ask]:
    """A call at the enrolment port."""
    facts = federation.home.facts
    with grpc.secure_channel(facts.enrolment_address, enrolment_credentials(federation.home.root)) as channel:
        yield lambda method, request: callable_of(channel, "Enrolment", method)(request, timeout=SECONDS)


def member_since(federation: Federation, home: Path, ago: timedelta, name: str = "st-marys", **more: Any) -> Member:
    """A member whose certificate was made some time ago."""
    federation.clock.shift = -ago
    made = federation.member(name, home, **more)
    federation.clock.shift = timedelta()
    return made


def refusal(act: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        act()
    return caught.value.code(), caught.value.details()


def join_request(secret: bytes, key: IdentityKey | None = None) -> pb.JoinRequest:
    return pb.JoinRequest(secret=secret, csr=(key or IdentityKey.generate()).csr())


def as_member(federation: Federation, member: Member, method: str, request: Any) -> Any:
    with grpc.secure_channel(member.address, channel_credentials(member)) as channel:
        return callable_of(channel, "Membership", method)(request, timeout=SECONDS)


def test_token_gives_the_certificate_that_its_record_names(federation: Federation, ask: Ask) -> None:
    token, key = federation.token("alice", Role.OPERATOR), IdentityKey.generate()
    reply = ask("Join", join_request(token.secret, key))
    certificate = verified(reply.chain, federation.home.root, datetime.now(UTC), Role.OPERATOR)
    assert certificate.identity == Identity("hearts", Role.OPERATOR, "alice")
    assert certificate.key_fingerprint == key.fingerprint
    assert abs(reply.clock - datetime.now(UTC).timestamp()) < 60


def test_refused_tokens_all_look_alike_and_the_log_names_the_reason(
    federation: Federation, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    used, expired, good = (federation.token(name) for name in ("used", "expired", "good"))
    ask("Join", join_request(used.secret))
    altered = bytes([good.secret[0] ^ 1]) + good.secret[1:]
    answers = [
        refusal(lambda s=secret: ask("Join", join_request(s))) for secret in (used.secret, altered, b"", b"x" * 99)
    ]
    federation.clock.shift = timedelta(hours=25)
    answers.append(refusal(lambda: ask("Join", join_request(expired.secret))))
    assert set(answers) == {(grpc.StatusCode.PERMISSION_DENIED, NOT_ACCEPTED)}
    for reason in (
        "certified spiffe://hearts/node/used",
        "used is used by another key",
        "no token with this secret",
        "of 99 bytes",
        "expired is expired",
    ):
        assert reason in caplog.text
    for token in (used, expired, good):
        assert token.secret.hex() not in caplog.text
        assert repr(token.secret)[2:-1] not in caplog.text


def test_database_that_is_away_is_no_refusal_and_nobodys_failure(
    federation: Federation, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    token = federation.token("st-marys")
    database = open_database(federation.home.database)
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE invitations RENAME TO away")
    for _ in range(25):  # more than a host may fail
        assert refusal(lambda: ask("Join", join_request(token.secret))) == (
            grpc.StatusCode.UNAVAILABLE,
            DATABASE_AWAY,
        )
    assert "no such table: invitations" in caplog.text
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO invitations")
    assert ask("Join", join_request(token.secret)).chain


@pytest.mark.parametrize("csr", [b"", b"no request", b"\x30\x82" * 1000])
def test_request_that_is_none_leaves_the_token_good(federation: Federation, ask: Ask, csr: bytes) -> None:
    token = federation.token("st-marys")
    assert refusal(lambda: ask("Join", pb.JoinRequest(secret=token.secret, csr=csr)))[1] == NOT_ACCEPTED
    ask("Join", join_request(token.secret))


def test_message_that_is_too_large(federation: Federation, ask: Ask) -> None:
    request = pb.JoinRequest(secret=b"x" * 16, csr=b"x" * (LARGEST_MESSAGE + 1))
    assert refusal(lambda: ask("Join", request))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_membership_is_not_at_the_enrolment_port(federation: Federation) -> None:
    address = federation.home.facts.enrolment_address
    with grpc.secure_channel(address, enrolment_credentials(federation.home.root)) as channel:
        renew = callable_of(channel, "Membership", "Renew")
        request = pb.RenewRequest(csr=IdentityKey.generate().csr())
        assert refusal(lambda: renew(request, timeout=SECONDS))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_whoever_fails_often_waits(federation: Federation, ask: Ask) -> None:
    codes = [refusal(lambda: ask("Join", join_request(b"x" * 16)))[0] for _ in range(21)]
    assert codes[:20] == [grpc.StatusCode.PERMISSION_DENIED] * 20
    assert codes[20] is grpc.StatusCode.RESOURCE_EXHAUSTED
    token = federation.token("st-marys")
    federation.clock.shift = timedelta(minutes=1)
    ask("Join", join_request(token.secret))


def test_failures_of_one_host_are_not_anothers() -> None:
    failures = Failures(TestClock())
    for _ in range(20):
        failures.count("192.0.2.1")
    assert failures.are_too_many("192.0.2.1")
    assert not failures.are_too_many("192.0.2.2")


def test_hosts_that_fail_do_not_fill_the_memory() -> None:
    failures = Failures(TestClock())
    for number in range(5000):
        failures.count(f"host-{number}")
    assert len(failures._hosts) == 4096


def test_host_of_a_peer() -> None:
    assert host_of("ipv4:192.0.2.1:41234") == "192.0.2.1"
    assert host_of("ipv6:%5B::1%5D:41234") == "[::1]"


def test_member_renews_at_two_thirds(federation: Federation, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(hours=17))
    before = member.certificate
    assert bring_up_to_date(member)
    assert member.certificate.serial != before.serial
    assert member.certificate.key_fingerprint == before.key_fingerprint
    assert Member.load(member.folder).certificate == member.certificate
    assert not bring_up_to_date(member)


def test_member_with_a_good_certificate_asks_for_nothing(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "coordinator")
    member = federation.member("st-marys", tmp_path / "m")
    assert not bring_up_to_date(member)  # no server is there


def test_server_that_is_away_at_renewal_is_no_error_yet(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "coordinator", clock=TestClock(timedelta(hours=-17)))
    member = federation.member("st-marys", tmp_path / "m")
    assert not bring_up_to_date(member)
    assert not member.is_expired(datetime.now(UTC))


def test_renewed_certificate_that_cannot_be_written_is_no_error_yet(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(hours=17))
    before, chain = member.certificate, member.folder / "chain.pem"
    chain.unlink()
    (chain / "in-the-way").mkdir(parents=True)  # root may write anywhere; a folder in the file's place stops it too
    assert not bring_up_to_date(member)
    assert "the renewed certificate could not be written" in caplog.text
    assert member.certificate == before


def test_renewal_for_another_key_is_for_nodes_alone(federation: Federation, tmp_path: Path) -> None:
    node, other = federation.member("st-marys", tmp_path / "n"), IdentityKey.generate()
    chain = as_member(federation, node, "Renew", pb.RenewRequest(csr=other.csr())).chain
    assert Certificate.of_der(head_of(chain)).key_fingerprint == other.fingerprint
    for role in (Role.OPERATOR, Role.AUDITOR):
        member = federation.member(f"a-{role}", tmp_path / role, role)
        request = pb.RenewRequest(csr=IdentityKey.generate().csr())
        assert refusal(lambda m=member, r=request: as_member(federation, m, "Renew", r)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            NOT_CERTIFIED,
        )
        as_member(federation, member, "Renew", pb.RenewRequest(csr=member.key.csr()))


def test_member_does_not_take_a_certificate_that_is_not_its_own(federation: Federation, tmp_path: Path) -> None:
    member, other = federation.member("st-marys", tmp_path / "m"), federation.member("st-annes", tmp_path / "o")
    issuing, now = federation.home.issuing(), datetime.now(UTC)
    for chain in (
        other.chain,
        issuing.issue(member.identity, IdentityKey.generate().csr(), now),
        issuing.issue(Identity("hearts", Role.NODE, "st-annes"), member.key.csr(), now),
        issuing.issue(Identity("hearts", Role.OPERATOR, "st-marys"), member.key.csr(), now),
        RootAuthority.create("hearts", now).issuer(now).issue(member.identity, member.key.csr(), now),
        b"",
    ):
        before = member.chain
        with pytest.raises(ChannelError):
            member.keep_chain(chain, now)
        assert member.chain == before == (member.folder / "chain.pem").read_bytes()


def test_revoked_member_cannot_renew(federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = federation.member("st-marys", tmp_path / "m")
    federation.members.revoke("st-marys", "contract ended", datetime.now(UTC))
    request = pb.RenewRequest(csr=member.key.csr())
    assert refusal(lambda: as_member(federation, member, "Renew", request)) == (
        grpc.StatusCode.PERMISSION_DENIED,
        NOT_CERTIFIED,
    )
    assert "contract ended" in caplog.text


def test_member_leaves(federation: Federation, tmp_path: Path) -> None:
    member, other = federation.member("st-marys", tmp_path / "m"), federation.member("st-annes", tmp_path / "o")
    as_member(federation, member, "Leave", pb.Nothing())
    annes, marys = federation.members.all()
    assert (annes.standing, marys.standing) == (Standing.MEMBER, Standing.LEFT)
    assert refusal(lambda: as_member(federation, member, "Renew", pb.RenewRequest(csr=member.key.csr())))
    as_member(federation, other, "Renew", pb.RenewRequest(csr=other.key.csr()))


@pytest.mark.parametrize("days", [2, 30])
def test_expired_certificate_returns_within_30_days(federation: Federation, tmp_path: Path, days: int) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=days, hours=23))
    assert member.is_expired(datetime.now(UTC))
    with dial(member) as channel:
        callable_of(channel, "Membership", "Renew")(pb.RenewRequest(csr=member.key.csr()), timeout=SECONDS)
    assert not member.is_expired(datetime.now(UTC))
    assert not Member.load(member.folder).is_expired(datetime.now(UTC))


def test_expired_certificate_does_not_return_after_30_days(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=31, hours=1))
    with pytest.raises(ChannelError, match=NOT_CERTIFIED):
        dial(member)
    assert "more than 30 days ago" in caplog.text


def test_revoked_member_cannot_return(federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    federation.members.revoke("st-marys", "contract ended", datetime.now(UTC))
    with pytest.raises(ChannelError, match=NOT_CERTIFIED):
        dial(member)
    assert "contract ended" in caplog.text


def test_member_revoked_between_challenge_and_return(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce
    federation.members.revoke("st-marys", "a test", datetime.now(UTC))
    assert refusal(lambda: ask("Return", return_request(member, nonce)))[1] == NOT_CERTIFIED


def test_replayed_return(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce
    request = return_request(member, nonce)
    ask("Return", request)
    assert refusal(lambda: ask("Return", request)) == (grpc.StatusCode.PERMISSION_DENIED, NOT_CERTIFIED)


def test_nonce_that_the_server_never_gave(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    assert refusal(lambda: ask("Return", return_request(member, b"n" * 32)))[1] == NOT_CERTIFIED
    ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der))
    assert refusal(lambda: ask("Return", return_request(member, b"n" * 32)))[1] == NOT_CERTIFIED


def test_nonce_of_another_member(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    one = member_since(federation, tmp_path / "m", timedelta(days=3))
    other = member_since(federation, tmp_path / "o", timedelta(days=3), name="st-annes")
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=one.certificate.der)).nonce
    assert refusal(lambda: ask("Return", return_request(other, nonce)))[1] == NOT_CERTIFIED
    ask("Return", return_request(one, nonce))  # nobody else could use it up


def test_nonce_that_is_old(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce
    federation.clock.shift = timedelta(seconds=61)
    assert refusal(lambda: ask("Return", return_request(member, nonce)))[1] == NOT_CERTIFIED


def test_return_signed_by_another_key(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    """Whoever has a copy of an old certificate, which is no secret, and not its key."""
    member, thief = member_since(federation, tmp_path / "m", timedelta(days=3)), IdentityKey.generate()
    nonce, csr = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce, thief.csr()
    request = pb.ReturnRequest(
        certificate=member.certificate.der, nonce=nonce, csr=csr, signature=thief.sign(RETURN, returning(nonce, csr))
    )
    assert refusal(lambda: ask("Return", request))[1] == NOT_CERTIFIED
    ask("Return", return_request(member, nonce))  # a bad signature does not use the nonce up


def test_return_whose_request_was_exchanged(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member, thief = member_since(federation, tmp_path / "m", timedelta(days=3)), IdentityKey.generate()
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce
    request = return_request(member, nonce)
    request.csr = thief.csr()
    assert refusal(lambda: ask("Return", request))[1] == NOT_CERTIFIED


def test_operator_that_returns_with_another_key(federation: Federation, ask: Ask, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3), name="alice", role=Role.OPERATOR)
    nonce = ask("Challenge", pb.ChallengeRequest(certificate=member.certificate.der)).nonce
    csr = IdentityKey.generate().csr()
    request = pb.ReturnRequest(
        certificate=member.certificate.der,
        nonce=nonce,
        csr=csr,
        signature=member.key.sign(RETURN, returning(nonce, csr)),
    )
    assert refusal(lambda: ask("Return", request))[1] == NOT_CERTIFIED


def test_return_with_a_certificate_that_its_holder_made_longer(
    federation: Federation, ask: Ask, tmp_path: Path
) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=40))
    old = x509.load_der_x509_certificate(member.certificate.der)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
    builder = builder.not_valid_before(now - timedelta(days=2)).not_valid_after(now - timedelta(days=1))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    longer = builder.sign(member.key.private, hashes.SHA256()).public_bytes(Encoding.DER)
    assert refusal(lambda: ask("Challenge", pb.ChallengeRequest(certificate=longer)))[1] == NOT_CERTIFIED


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\x30" * 9000])
def test_challenge_for_what_is_no_certificate(ask: Ask, content: bytes) -> None:
    assert refusal(lambda: ask("Challenge", pb.ChallengeRequest(certificate=content)))[1] == NOT_CERTIFIED


def test_challenge_for_a_member_of_another_federation(ask: Ask, tmp_path: Path) -> None:
    stranger = make_federation(tmp_path / "other").member("st-marys", tmp_path / "m")
    assert (
        refusal(lambda: ask("Challenge", pb.ChallengeRequest(certificate=stranger.certificate.der)))[1] == NOT_CERTIFIED
    )


def test_nonces_are_bounded_by_members_not_by_calls(federation: Federation, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    nonces = {federation.registrar.challenge(member.certificate.der) for _ in range(50)}
    assert len(nonces) == 50
    assert len(federation.registrar._nonces) == 1


def test_members_go_on_when_the_issuer_is_made_anew(federation: Federation, tmp_path: Path) -> None:
    """`privet federation reissue`, and a restart of the server."""
    away = member_since(federation, tmp_path / "away", timedelta(days=3), name="away")
    here = federation.member("here", tmp_path / "here")
    federation.home.reissue(federation.home.root_key, PASSPHRASE, datetime.now(UTC))
    registrar = Registrar(federation.home, federation.members, federation.clock)
    assert verified(here.chain, federation.home.root, datetime.now(UTC)).identity == here.identity
    nonce = registrar.challenge(away.certificate.der)
    request = return_request(away, nonce)
    chain = registrar.come_back(request.certificate, request.nonce, request.signature, request.csr)
    away.keep_chain(chain, datetime.now(UTC))
    assert away.chain.endswith(federation.home.issuing().pem)


def test_return_races_for_one_nonce(federation: Federation, tmp_path: Path) -> None:
    member = member_since(federation, tmp_path / "m", timedelta(days=3))
    request = return_request(member, federation.registrar.challenge(member.certificate.der))
    start, outcomes = threading.Barrier(6), list[bool]()

    def attempt() -> None:
        start.wait()
        try:
            federation.registrar.come_back(request.certificate, request.nonce, request.signature, request.csr)
            outcomes.append(True)
        except Exception:
            outcomes.append(False)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == [False] * 5 + [True]
