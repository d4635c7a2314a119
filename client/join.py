"""How an institution, an operator or an auditor joins: with one token, once.

The rules:
1. Nothing is sent before the root that the server shows has the fingerprint that the token names. Python's gRPC cannot
   pin a certificate, so the root is fetched over a TLS connection that verifies nothing and carries nothing; then gRPC
   is opened with that root as the only one.
2. The private key is made here and stays here. It is written before the token is sent: where the answer is lost, the
   same command asks again with the same key, which the server allows until the token ends.
3. What is written last is membership.json: before it, nobody has joined.
"""

import hmac
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from .. import __version__
from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.authority import root_fingerprint
from ..privacy.channel.credentials import channel_credentials, enrolment_credentials
from ..privacy.channel.dial import errors_of
from ..privacy.channel.identities import IdentityKey, federation_of
from ..privacy.channel.member import Member, Membership, has_joined
from ..privacy.channel.services import callable_of
from ..privacy.channel.token import Token, host_and_port
from ..privacy.errors import ChannelError, EnrolmentError

SECONDS = 20.0  # for one step over the network
LARGEST_CLOCK_DIFFERENCE = 300.0  # seconds; certificates and submissions are judged by the clock
_MOST_CERTIFICATES = 5  # that a server shows; ours shows 3


@dataclass(frozen=True, slots=True)
class Joined:
    """A new member, and how far its clock is ahead of the server's, in seconds."""

    member: Member
    clock_difference: float


def join(token: Token, folder: Path, passphrase: bytes | None = None, clock: Clock = system_clock) -> Joined:
    """Become a member in `folder`; raise EnrolmentError or ChannelError, after which the token may be tried again."""
    if has_joined(folder):
        present = Member.load(folder, passphrase).identity.uri
        raise EnrolmentError(
            f"{folder}: {present} has joined already", f"$PRIVET_HOME with another folder, or move {folder} away"
        )
    root = fetched_root(token)
    key = _key(folder / "key.pem", passphrase)
    reply = _asked(token, root, key)
    now = clock()
    difference = now.timestamp() - reply.clock
    if abs(difference) > LARGEST_CLOCK_DIFFERENCE:
        word = "ahead of" if difference > 0 else "behind"
        raise ChannelError(
            f"this machine's clock is {abs(difference):.0f} s {word} the server's, "
            f"allowed are {LARGEST_CLOCK_DIFFERENCE:.0f}",
            "set the clock (NTP), then the same command again",
        )
    membership = Membership(token.federation, token.role, token.name, token.address, token.enrolment_address)
    member = Member.create(folder, membership, key, reply.chain, root, now, passphrase)
    return Joined(member, difference)


def fetched_root(token: Token) -> bytes:
    """The federation's root (PEM), which the token's fingerprint names; raise ChannelError where another is shown."""
    shown = _shown_certificates(*host_and_port(token.enrolment_address), token.enrolment_address)
    try:
        root = x509.load_der_x509_certificate(shown[-1]) if shown else None
    except (ValueError, UnsupportedAlgorithm):
        root = None
    if root is None or not hmac.compare_digest(root_fingerprint(root), token.root_fingerprint):
        raise ChannelError(
            f"{token.enrolment_address} does not show the root that the token names; nothing was sent",
            "ask the coordinator whether the address is right, and tell that somebody else may answer there",
        )
    if federation_of(root) != token.federation:
        raise ChannelError(f"the root is not of federation {token.federation}", "ask the coordinator for another token")
    return root.public_bytes(Encoding.PEM)


def reached(member: Member, seconds: float = SECONDS) -> float:
    """How long the main port took to accept this member, in seconds; raise ChannelError where it did not."""
    begin = time.monotonic()
    with grpc.secure_channel(member.address, channel_credentials(member)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            raise ChannelError(
                f"{member.address} cannot be reached with the new certificate",
                "see that the firewall lets you out to this address, then: privet node --check",
            ) from None
    return time.monotonic() - begin


def _shown_certificates(host: str, port: int, address: str) -> list[bytes]:
    """What the server shows, DER, its own certificate first. Unverified, so nothing is sent here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            return _chain_of(connection)
    except (OSError, ValueError) as error:
        raise ChannelError(
            f"{address} cannot be reached: {error}",
            "see that the address is right, that the server runs, and that the firewall lets you out",
        ) from None


def _chain_of(connection: ssl.SSLSocket) -> list[bytes]:
    """Public since Python 3.13 (and bytes there); 3.10 to 3.12 have it in `_sslobj`, as certificate objects."""
    found = getattr(connection, "get_unverified_chain", None) or connection._sslobj.get_unverified_chain  # type: ignore[attr-defined]
    chain = list(found() or [])[: _MOST_CERTIFICATES + 1]
    if len(chain) > _MOST_CERTIFICATES:
        return []
    return [one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in chain]


def _key(path: Path, passphrase: bytes | None) -> IdentityKey:
    """The key of an attempt that was cut short, or a new one."""
    if path.exists():
        return IdentityKey.load(path, passphrase)
    key = IdentityKey.generate()
    key.save(path, passphrase)
    return key


def _asked(token: Token, root: bytes, key: IdentityKey) -> pb.Certificates:
    request = pb.JoinRequest(secret=token.secret, csr=key.csr(), version=__version__)
    with errors_of(token.enrolment_address), _channel(token.enrolment_address, root) as channel:
        try:
            reply: pb.Certificates = callable_of(channel, "Enrolment", "Join")(request, timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                raise
            raise EnrolmentError(
                error.details() or "the token was not accepted",
                "ask the coordinator for a new one: it may have ended, or have been used",
            ) from None
    return reply


def _channel(address: str, root: bytes) -> grpc.Channel:
    return grpc.secure_channel(address, enrolment_credentials(root))
