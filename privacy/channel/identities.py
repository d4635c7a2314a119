"""Who a party is: its role and name in a federation, its key, and the certificate that ties them together.

The rules:
1. An identity is a SPIFFE ID: `spiffe://FEDERATION/ROLE/NAME` (SPIFFE ID, section 2). Names are lower case, so that two
   that look alike to a person are not two to a program.
2. Every key is ECDSA P-256. With other kinds TLS 1.2 could not be refused; see credentials.py.
3. A certificate that was parsed proves nothing. `verified` is the one way from bytes of a stranger to a Certificate to
   trust; each check stands there with its source.
4. A signature names its purpose, so that a signature for one thing is none for another.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from ..errors import ChannelError
from .files import LARGEST_FILE, OWNER_ONLY, read_private, write_whole

LONGEST_NAME = 63  # characters, a DNS label's
_NAME = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,{LONGEST_NAME - 2}}}[a-z0-9])?")
_DER = serialization.Encoding.DER
_SIGNATURE = ec.ECDSA(hashes.SHA256())
_ASK_AGAIN = "ask the coordinator for a new invitation"
# What the library raises for bytes that are no certificate of ours; an unknown version is no ValueError to it.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
)


class Role(StrEnum):
    """What a party may be in a federation."""

    NODE = "node"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    SERVER = "server"


USAGE = dict.fromkeys(Role, ExtendedKeyUsageOID.CLIENT_AUTH) | {Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True, slots=True)
class Identity:
    """A party of a federation.

    >>> Identity("hearts", Role.NODE, "st-marys").uri
    'spiffe://hearts/node/st-marys'
    """

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        for text in (self.federation, self.name):
            if not _NAME.fullmatch(text):
                raise ChannelError(
                    f"{text[: LONGEST_NAME + 1]!r} is not a name of 1 to {LONGEST_NAME} lower-case letters, digits "
                    "and dashes",
                    "a name such as st-marys",
                )

    @property
    def uri(self) -> str:
        """Its SPIFFE ID."""
        return f"spiffe://{self.federation}/{self.role}/{self.name}"

    @classmethod
    def of_uri(cls, uri: str) -> Self:
        """The party that a SPIFFE ID names; raise ChannelError for anything else."""
        scheme, _, rest = uri.partition("://")
        parts = rest.split("/")
        if scheme != "spiffe" or len(parts) != 3 or parts[1] not in list(Role):
            raise ChannelError(f"{uri[:200]!r} names no party of a federation", _ASK_AGAIN)
        return cls(parts[0], Role(parts[1]), parts[2])


class IdentityKey:
    """A party's private key, ECDSA P-256. `fingerprint` is SHA-256 of its public half (SPKI, DER), hexadecimal."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.fingerprint = fingerprint_of(private.public_key())

    @classmethod
    def generate(cls) -> Self:
        """A new key, in memory only."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """The key in a file; raise ChannelError where it is none, or others may read it."""
        return cls.of_pem(read_private(path, "restore the key from its backup, or join again"), path, passphrase)

    @classmethod
    def of_pem(cls, pem: bytes, path: Path, passphrase: bytes | None = None) -> Self:
        """The key in the content of a file, whose path is for the error alone."""
        # One variable holds the passphrase of all keys of a home; one that was not encrypted does not need it.
        is_encrypted = b"ENCRYPTED" in pem
        try:
            private = serialization.load_pem_private_key(pem, passphrase if is_encrypted else None)
        except TypeError:
            raise ChannelError(f"{path}: the key is encrypted", "--passphrase-file FILE") from None
        except (ValueError, UnsupportedAlgorithm):
            raise ChannelError(
                f"{path}: not a key that opens with this passphrase", "give the right passphrase, or restore the key"
            ) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise ChannelError(f"{path}: not an ECDSA P-256 key", "restore the key from its backup")
        return cls(private)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write it to a file, mode 0600, encrypted where there is a passphrase."""
        write_whole(path, self.pem(passphrase), OWNER_ONLY)

    def pem(self, passphrase: bytes | None = None) -> bytes:
        """It in PKCS 8; without a passphrase it is for TLS, and stays in memory."""
        protection: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        return self._private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The signature over purpose and message (ECDSA, SHA-256, DER)."""
        return self._private.sign(_framed(purpose, message), _SIGNATURE)

    def csr(self) -> bytes:
        """A request for a certificate of this key (PKCS 10, DER). It names nobody: the issuer knows who asks."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self._private, hashes.SHA256()).public_bytes(_DER)

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        """For an authority, which signs certificates with it."""
        return self._private


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it says; only `verified` has checked one. `serial` and `key_fingerprint` are hexadecimal."""

    identity: Identity
    serial: str
    not_before: datetime
    not_after: datetime
    key_fingerprint: str
    der: bytes

    @classmethod
    def of_der(cls, der: bytes) -> Self:
        """What the bytes say, unverified; raise ChannelError where they are no certificate of a party."""
        try:
            if len(der) > LARGEST_FILE:
                raise ValueError
            return cls._of(x509.load_der_x509_certificate(der))
        except UNREADABLE:
            raise ChannelError("not a certificate of a party of a federation", _ASK_AGAIN) from None

    @classmethod
    def _of(cls, parsed: x509.Certificate) -> Self:
        return cls(
            _identity_in(parsed),
            f"{parsed.serial_number:x}",
            parsed.not_valid_before_utc,
            parsed.not_valid_after_utc,
            fingerprint_of(p256(parsed.public_key())),
            parsed.public_bytes(_DER),
        )

    def has_signed(self, purpose: str, message: bytes, signature: bytes) -> bool:
        """Whether its key signed this message for this purpose."""
        key = p256(x509.load_der_x509_certificate(self.der).public_key())
        try:
            key.verify(signature, _framed(purpose, message), _SIGNATURE)
        except InvalidSignature:
            return False
        return True


def verified(chain_pem: bytes, root_pem: bytes, at: datetime, role: Role | None = None) -> Certificate:
    """The certificate at the head of a chain, checked up to the root, at a moment, and for a role where one is given.

    `chain_pem`: the party's certificate, then its issuer's. Raises ChannelError; revocation is not looked at here.
    Source: RFC 5280, section 6.1; SPIFFE X.509-SVID, sections 2 to 5.
    """
    try:
        root = x509.load_pem_x509_certificate(root_pem)
        if len(chain_pem) > LARGEST_FILE:
            raise ValueError
        certificates = x509.load_pem_x509_certificates(chain_pem)
    except UNREADABLE:
        raise ChannelError("not a chain of certificates", _ASK_AGAIN) from None
    if len(certificates) != 2:  # the root signs issuers alone, and an issuer's path length is 0
        raise ChannelError(f"a chain of {len(certificates)} certificates; it has 2", _ASK_AGAIN)
    leaf, issuer = certificates
    certificate = Certificate.of_der(leaf.public_bytes(_DER))
    _check_path(leaf, issuer, root, at, certificate)
    if role is not None and certificate.identity.role is not role:
        raise ChannelError(f"{certificate.identity.uri} is not of role {role}", f"ask as a party of role {role}")
    return certificate


def _check_path(
    leaf: x509.Certificate, issuer: x509.Certificate, root: x509.Certificate, at: datetime, said: Certificate
) -> None:
    """Raise ChannelError unless root, issuer and leaf form a path that this federation gives out."""
    ends = ExtensionPolicy.webpki_defaults_ee().require_present(
        x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _only_usage(said.identity.role)
    )
    # Signatures, validity of all, CA and key usage bits, path lengths: RFC 5280, sections 4.2.1.3, 4.2.1.9, 6.1.3.
    policy = PolicyBuilder().store(Store([root])).time(at).max_chain_depth(1)
    policy = policy.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ends)
    try:
        path = policy.build_client_verifier().verify(leaf, [issuer]).chain
        limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (VerificationError, x509.ExtensionNotFound, ValueError) as error:
        raise ChannelError(f"the certificate of {said.identity.uri} {_reason(error, said, at)}", _ASK_AGAIN) from None
    if path[1:2] != [issuer] or path[2:] != [root]:  # the root itself never issues to a party
        raise ChannelError(f"{said.identity.uri} was not certified by an issuer of this root", _ASK_AGAIN)
    if limits.path_length != 0:  # RFC 5280, section 4.2.1.9: an issuer here makes no further ones
        raise ChannelError("the issuer's path length is not 0", _ASK_AGAIN)
    if federation_of(root) != said.identity.federation:  # SPIFFE X.509-SVID, section 5: one trust domain, one root
        raise ChannelError(f"{said.identity.uri} is not of federation {federation_of(root)}", _ASK_AGAIN)


def _only_usage(role: Role) -> Callable[[object, object, x509.ExtendedKeyUsage | None], None]:
    """RFC 5280, section 4.2.1.12: a node's certificate makes no server, and the server's no node."""

    def check(_policy: object, _certificate: object, usage: x509.ExtendedKeyUsage | None) -> None:
        if usage is None or list(usage) != [USAGE[role]]:
            raise ValueError(f"is not for the use of role {role}")

    return check


def _reason(error: Exception, said: Certificate, at: datetime) -> str:
    if at > said.not_after:
        return f"expired on {said.not_after:%Y-%m-%d %H:%M} UTC"
    if at < said.not_before:
        return f"is valid from {said.not_before:%Y-%m-%d %H:%M} UTC only; is the clock right?"
    return f"does not lead to the federation's root: {str(error).splitlines()[0][:200]}"


def _identity_in(parsed: x509.Certificate) -> Identity:
    """SPIFFE X.509-SVID, section 2: exactly one URI in the subject's alternative names."""
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ChannelError(f"a certificate with {len(uris)} URIs; it has one", _ASK_AGAIN)
    return Identity.of_uri(uris[0])


def federation_of(authority: x509.Certificate) -> str:
    """The federation that a root or an issuer names (its organisation)."""
    return _organisation(authority.subject)


def federation_of_issuer(certificate: x509.Certificate) -> str:
    """The federation that a certificate's issuer names."""
    return _organisation(certificate.issuer)


def _organisation(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def p256(key: object) -> ec.EllipticCurvePublicKey:
    """The key, where it is an ECDSA P-256 key; raise ChannelError for any other."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ChannelError("a key that is not ECDSA P-256", "make the key with privet join")
    return key


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (SPKI, DER), hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def _framed(purpose: str, message: bytes) -> bytes:
    return b"privet/" + purpose.encode() + b"/v1\0" + message
