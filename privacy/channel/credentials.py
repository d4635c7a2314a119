"""What gRPC is given so that both ends know each other, and who a peer turns out to be.

The rules:
1. TLS 1.3 alone. Python's gRPC has no option for it, so the one TLS 1.2 suite that is left on the list needs an RSA
   key, and no key here is RSA: a handshake of 1.2 finds no shared cipher. gRPC reads that list when it is imported, so
   privet/__init__.py sets it; a program that imported gRPC before is caught by `insist_on_tls`.
2. The federation's root is the only root. The machine's own list of authorities is never read.
3. A new connection gets the newest certificate of the server; open ones go on with theirs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ChannelError
from .identities import Certificate, Identity, Role, federation_of_issuer
from .member import Member

_TLS = b"TLSv1.3"
_JOIN = "privet join TOKEN, with a token from the coordinator"


@dataclass(frozen=True, slots=True, repr=False)
class Presented:
    """What a server presents: its key, its chain up to the root (PEM), and the root that it trusts."""

    key: bytes
    chain: bytes
    root: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, as TLS has verified it. Revocation: `Members.check`."""

    identity: Identity
    serial: str
    key_fingerprint: str
    not_before: datetime
    not_after: datetime
    tls_version: str


def server_credentials(
    current: Callable[[], Presented], is_certificate_required: bool = True
) -> grpc.ServerCredentials:
    """Credentials of a server, which asks `current` at every new connection what to present.

    `current` is called in gRPC's threads and must be quick; the same object again means that nothing changed.
    """
    last = [current()]

    def changed() -> grpc.ServerCertificateConfiguration | None:
        presented = current()
        if presented is last[0]:
            return None
        last[0] = presented
        return _configuration(presented)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(last[0]),
        changed,  # type: ignore[arg-type]  # gRPC takes None for "as before", the stubs do not know
        require_client_authentication=is_certificate_required,
    )


def channel_credentials(member: Member) -> grpc.ChannelCredentials:
    """Credentials of a member with the certificate that it has now: after a renewal a channel is made anew."""
    return grpc.ssl_channel_credentials(member.root, member.key.pem(), member.chain)


def enrolment_credentials(root_pem: bytes) -> grpc.ChannelCredentials:
    """Credentials of one who has no certificate yet, or no longer, and trusts this root alone."""
    return grpc.ssl_channel_credentials(root_pem)


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """Who called, from gRPC's `auth_context`; raise ChannelError unless it is one party of the server's federation.

    TLS has verified the path up to the root. Source of the rest: SPIFFE X.509-SVID, section 2.
    """
    version = insist_on_tls(auth_context)
    try:
        parsed = x509.load_pem_x509_certificate(_one(auth_context, "x509_pem_cert"))
    except ValueError:
        raise ChannelError("a connection without a certificate", _JOIN) from None
    said = Certificate.of_der(parsed.public_bytes(Encoding.DER))
    if federation_of_issuer(parsed) != said.identity.federation:
        raise ChannelError(f"{said.identity.uri}: not a name that this federation's issuer gives", _JOIN)
    if said.identity.role is Role.SERVER:
        raise ChannelError(f"{said.identity.uri}: a server calls nobody", _JOIN)
    return Peer(said.identity, said.serial, said.key_fingerprint, said.not_before, said.not_after, version)


def insist_on_tls(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The connection's version of TLS; raise ChannelError for any but 1.3."""
    version = _one(auth_context, "ssl_tls_version")
    if version != _TLS:
        raise ChannelError("a connection that is not TLS 1.3", "update privet, and use no TLS proxy in between")
    return version.decode()


def _configuration(presented: Presented) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(presented.key, presented.chain)], presented.root)


def _one(auth_context: Mapping[str, Iterable[bytes]], name: str) -> bytes:
    found = list(auth_context.get(name, ()))
    return found[0] if len(found) == 1 else b""
