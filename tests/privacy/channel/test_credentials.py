"""Mutual TLS with real certificates on loopback: who gets through to a service, and who does not."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from parties import Federation, TestClock, make_federation
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.authority import RootAuthority
from privet.privacy.channel.credentials import peer_of
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.channel.services import handlers_of
from privet.privacy.errors import ChannelError
from privet.server.federation_home import ServerCertificate

SECONDS = 10.0


class Mirror:
    """A service that tells callers who they are."""

    async def Renew(self, _: pb.RenewRequest, context: Any) -> pb.Certificates:  # noqa: N802
        try:
            peer = peer_of(context.auth_context())
        except ChannelError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.message)
        return pb.Certificates(chain=f"{peer.identity.uri} {peer.tls_version} {peer.key_fingerprint}".encode())

    async def Leave(self, _: pb.Nothing, context: Any) -> pb.Nothing:  # noqa: N802
        return pb.Nothing()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = make_federation(tmp_path / "coordinator")
    made.main_handlers = (handlers_of("Membership", Mirror()),)
    with made.serving():
        yield made


def call(federation: Federation, credentials: grpc.ChannelCredentials) -> str:
    from privet.privacy.channel.services import callable_of

    with grpc.secure_channel(federation.home.facts.address, credentials) as channel:
        reply = callable_of(channel, "Membership", "Renew")(pb.RenewRequest(), timeout=SECONDS)
    return str(reply.chain.decode())


def credentials_of(federation: Federation, identity: Identity, key: IdentityKey, hours: float = 24) -> Any:
    chain = federation.home.issuing().issue(identity, key.csr(), datetime.now(UTC), timedelta(hours=hours))
    return grpc.ssl_channel_credentials(federation.home.root, key.pem(), chain)


@pytest.mark.parametrize("role", [Role.NODE, Role.OPERATOR, Role.AUDITOR])
def test_server_learns_who_calls(federation: Federation, role: Role) -> None:
    key = IdentityKey.generate()
    told = call(federation, credentials_of(federation, Identity("hearts", role, "st-marys"), key))
    assert told == f"spiffe://hearts/{role}/st-marys TLSv1.3 {key.fingerprint}"


def test_no_client_certificate(federation: Federation) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(federation, grpc.ssl_channel_credentials(federation.home.root))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_no_tls(federation: Federation) -> None:
    with grpc.insecure_channel(federation.home.facts.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/privet.v1.Membership/Renew")(b"", timeout=SECONDS)


def test_self_signed(federation: Federation) -> None:
    key, now = IdentityKey.generate(), datetime.now(UTC)
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.private.public_key(), 5)
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hearts/node/st-marys")])
    made = builder.add_extension(uri, True).sign(key.private, hashes.SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(grpc.RpcError):
        call(federation, grpc.ssl_channel_credentials(federation.home.root, key.pem(), made))


def test_member_of_another_federation(federation: Federation) -> None:
    key, now = IdentityKey.generate(), datetime.now(UTC)
    other = RootAuthority.create("hearts", now).issuer(now)
    chain = other.issue(Identity("hearts", Role.NODE, "st-marys"), key.csr(), now)
    with pytest.raises(grpc.RpcError):
        call(federation, grpc.ssl_channel_credentials(federation.home.root, key.pem(), chain))


def test_expired_certificate(federation: Federation) -> None:
    key, issuing = IdentityKey.generate(), federation.home.issuing()
    past = datetime.now(UTC) - timedelta(minutes=9)
    chain = issuing.issue(Identity("hearts", Role.NODE, "a"), key.csr(), past, timedelta(minutes=5))
    with pytest.raises(grpc.RpcError):
        call(federation, grpc.ssl_channel_credentials(federation.home.root, key.pem(), chain))


def test_stolen_certificate_without_its_key(federation: Federation) -> None:
    chain = federation.home.issuing().issue(
        Identity("hearts", Role.NODE, "a"), IdentityKey.generate().csr(), datetime.now(UTC)
    )
    with pytest.raises(grpc.RpcError):
        call(federation, grpc.ssl_channel_credentials(federation.home.root, IdentityKey.generate().pem(), chain))


def test_servers_own_certificate_calls_nobody(federation: Federation) -> None:
    with pytest.raises(grpc.RpcError):
        call(federation, credentials_of(federation, Identity("hearts", Role.SERVER, "server"), IdentityKey.generate()))


def test_node_that_plays_the_server(federation: Federation, tmp_path: Path) -> None:
    """A member's certificate, in a server's place, is not believed by other members."""
    key = IdentityKey.generate()
    chain = federation.home.issuing().issue(
        Identity("hearts", Role.NODE, "thief"), key.csr(), datetime.now(UTC), hosts=("localhost",)
    )

    async def attempt() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handlers_of("Membership", Mirror()),))
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key.pem(), chain)]))
        await server.start()
        try:
            victim = credentials_of(federation, Identity("hearts", Role.NODE, "st-marys"), IdentityKey.generate())
            async with grpc.aio.secure_channel(f"localhost:{port}", victim) as channel:
                await channel.unary_unary("/privet.v1.Membership/Leave")(b"", timeout=SECONDS)
        finally:
            await server.stop(0)

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(attempt())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_server_at_another_address(federation: Federation) -> None:
    """The server's certificate is good for its own host alone."""
    address = federation.home.facts.address.replace("localhost", "127.0.0.1")
    key = IdentityKey.generate()
    credentials = credentials_of(federation, Identity("hearts", Role.NODE, "a"), key)
    with grpc.secure_channel(address, credentials) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/privet.v1.Membership/Leave")(b"", timeout=SECONDS)


def handshake(address: str, version: ssl.TLSVersion, certificate: Path | None = None) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate)
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), SECONDS) as raw, context.wrap_socket(raw) as connection:
        return connection.version()


def test_tls_1_2_is_refused(federation: Federation, tmp_path: Path) -> None:
    key = IdentityKey.generate()
    chain = federation.home.issuing().issue(Identity("hearts", Role.NODE, "a"), key.csr(), datetime.now(UTC))
    (tmp_path / "both.pem").write_bytes(key.pem() + chain)
    for address in (federation.home.facts.address, federation.home.facts.enrolment_address):
        assert handshake(address, ssl.TLSVersion.TLSv1_3, tmp_path / "both.pem") == "TLSv1.3"
        with pytest.raises(OSError, match=r"SSL|reset"):
            handshake(address, ssl.TLSVersion.TLSv1_2, tmp_path / "both.pem")


def test_tls_1_2_is_refused_where_grpc_was_imported_before(tmp_path: Path) -> None:
    """gRPC read its ciphers already; then peer_of is what refuses."""
    context: dict[str, list[bytes]] = {"ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b""]}
    with pytest.raises(ChannelError, match=r"not TLS 1\.3"):
        peer_of(context)
    done = subprocess.run(
        [sys.executable, "-c", "import privet, os; print(os.environ['GRPC_SSL_CIPHER_SUITES'])"],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "GRPC_SSL_CIPHER_SUITES"},
    )
    assert "RSA" in done.stdout


def context_of(federation: Federation, identity: Identity, **changes: list[bytes]) -> dict[str, list[bytes]]:
    issuing = federation.home.issuing()
    chain = issuing.issue(identity, IdentityKey.generate().csr(), datetime.now(UTC))
    leaf = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.PEM)
    return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [leaf]} | changes


def test_connection_that_shows_nobody(federation: Federation) -> None:
    node = Identity("hearts", Role.NODE, "a")
    assert peer_of(context_of(federation, node)).identity == node
    with pytest.raises(ChannelError, match="without a certificate"):
        peer_of(context_of(federation, node, x509_pem_cert=[]))
    with pytest.raises(ChannelError, match=r"not TLS 1\.3"):
        peer_of(context_of(federation, node, ssl_tls_version=[]))
    with pytest.raises(ChannelError, match="a server calls nobody"):
        peer_of(context_of(federation, Identity("hearts", Role.SERVER, "server")))


def test_issuer_that_names_a_party_of_another_federation(federation: Federation) -> None:
    issuing, key = federation.home.issuing(), IdentityKey.generate()
    made = x509.load_pem_x509_certificates(
        issuing.issue(Identity("hearts", Role.NODE, "a"), key.csr(), datetime.now(UTC))
    )[0]
    builder = x509.CertificateBuilder(made.issuer, made.subject, made.public_key(), 5)
    builder = builder.not_valid_before(made.not_valid_before_utc).not_valid_after(made.not_valid_after_utc)
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://lungs/node/a")])
    forged = builder.add_extension(uri, True).sign(issuing._key.private, hashes.SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(ChannelError, match="not a name that this federation's issuer gives"):
        peer_of(context_of(federation, Identity("hearts", Role.NODE, "a"), x509_pem_cert=[forged]))


def server_serial(address: str, certificate: Path) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate)
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), SECONDS) as raw, context.wrap_socket(raw) as connection:
        shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_server_renews_its_certificate_while_it_runs(tmp_path: Path) -> None:
    """At two thirds of its life; a connection that is open goes on, and a new one sees the new certificate."""
    federation = make_federation(tmp_path / "coordinator", clock=TestClock(timedelta(hours=-17)))
    federation.main_handlers = (handlers_of("Membership", Mirror()),)
    key = IdentityKey.generate()
    chain = federation.home.issuing().issue(Identity("hearts", Role.NODE, "a"), key.csr(), datetime.now(UTC))
    (tmp_path / "both.pem").write_bytes(key.pem() + chain)
    address = federation.home.facts.address
    with (
        federation.serving(),
        grpc.secure_channel(address, grpc.ssl_channel_credentials(federation.home.root, key.pem(), chain)) as channel,
    ):
        leave = channel.unary_unary("/privet.v1.Membership/Leave")
        leave(b"", timeout=SECONDS)
        before = server_serial(address, tmp_path / "both.pem")
        assert server_serial(address, tmp_path / "both.pem") == before
        federation.clock.shift = timedelta()
        after = server_serial(address, tmp_path / "both.pem")
        assert after != before
        assert server_serial(address, tmp_path / "both.pem") == after
        leave(b"", timeout=SECONDS)
        call(federation, grpc.ssl_channel_credentials(federation.home.root, key.pem(), chain))


def test_server_that_cannot_renew_goes_on_with_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its issuer came to an end, or its disk is full."""
    federation = make_federation(tmp_path / "coordinator")
    certificate = ServerCertificate(federation.home, federation.clock)
    before = certificate.presented()
    assert caplog.text == ""
    federation.clock.shift = timedelta(days=310)
    ServerCertificate(federation.home, federation.clock)
    assert "privet federation reissue" in caplog.text
    federation.clock.shift = timedelta(days=366)
    assert certificate.presented() is before
    assert "the issuer's certificate expired" in caplog.text
