"""The federation's two authorities: a root that stays offline, and the issuer that the server holds.

    root      10 years, key encrypted with a passphrase; signs issuers, nothing else, and may lie in a safe
    issuer    1 year, path length 0: it certifies parties and cannot make further issuers
    party     24 hours, renewed at two thirds

The root's key may lie for years where somebody finds it, and PKCS 8 hardens a passphrase by 2,048 rounds alone. So the
passphrase goes through scrypt first (RFC 7914); its cost and salt stand in the file's first line.

Every certificate begins a few minutes before it was made (`BACKDATED`): the party's clock may be a little behind the
server's. Serials are random (RFC 5280, section 4.1.2.2).
"""

import ipaddress
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.x509.oid import NameOID

from ..errors import ChannelError
from .files import OWNER_ONLY, read_file, read_private, write_whole
from .identities import LONGEST_NAME, USAGE, Identity, IdentityKey, Role, federation_of, p256

ROOT_LIFETIME = timedelta(days=3650)
ISSUER_LIFETIME = timedelta(days=365)
LEAF_LIFETIME = timedelta(hours=24)
BACKDATED = timedelta(minutes=10)
LARGEST_CSR = 4096  # bytes; one of ours takes about 200
SCRYPT_COST = 1 << 16  # N of scrypt with r 8 and p 1: 64 MiB and some tenths of a second for each guess
_MOST_COST = 1 << 20  # 1 GiB: no file makes this program take more
_HARDENED = re.compile(rb"scrypt ([0-9]{1,7}) ([0-9a-f]{32})\n")
_PEM = serialization.Encoding.PEM
_RESTORE = "restore the federation's folder from its backup"


class _Authority:
    """A key and the certificate of an authority. `pem` is the certificate."""

    def __init__(self, key: IdentityKey, certificate: x509.Certificate) -> None:
        if p256(certificate.public_key()) != key.private.public_key():
            raise ChannelError("the authority's key and certificate are not a pair", _RESTORE)
        self._key = key
        self.certificate = certificate
        self.federation = federation_of(certificate)
        self.not_after = certificate.not_valid_after_utc

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(_PEM)

    @classmethod
    def load(cls, certificate: Path, key: Path, passphrase: bytes | None = None) -> Self:
        """The authority in two files; raise ChannelError where they are none."""
        return cls(IdentityKey.load(key, passphrase), _certificate(certificate))

    def save(self, certificate: Path, key: Path, passphrase: bytes | None = None) -> None:
        """Write both, the key first: a certificate without its key would be of no use."""
        self._key.save(key, passphrase)
        write_whole(certificate, self.pem)


class RootAuthority(_Authority):
    """The root of a federation, which certifies issuers."""

    @classmethod
    def create(cls, federation: str, now: datetime, lifetime: timedelta = ROOT_LIFETIME) -> Self:
        """A new root, in memory only."""
        Identity(federation, Role.SERVER, "server")  # a name that no identity could bear is refused here
        key, name = IdentityKey.generate(), _name(federation, "root")
        builder = _builder(name, name, key.private.public_key(), now, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        return cls(key, _signed(_with_authority_bits(builder, key), key))

    @classmethod
    def load(cls, certificate: Path, key: Path, passphrase: bytes | None = None) -> Self:
        """The root in two files, opened with its passphrase."""
        content = read_private(key, _RESTORE)
        hardened = _HARDENED.match(content)
        if hardened is None or int(hardened[1]) > _MOST_COST:
            raise ChannelError(f"{key}: not a root's key", _RESTORE)
        if not passphrase:
            raise ChannelError(f"{key}: the key is encrypted", "--passphrase-file FILE")
        password = _hardened(passphrase, int(hardened[1]), bytes.fromhex(hardened[2].decode()))
        return cls(IdentityKey.of_pem(content, key, password), _certificate(certificate))

    def save(self, certificate: Path, key: Path, passphrase: bytes | None = None, cost: int = SCRYPT_COST) -> None:
        """Write both; a root's key is never written without a passphrase. `cost`: N of scrypt, a power of 2."""
        if not passphrase:
            raise ValueError("a root's key is encrypted")
        salt = secrets.token_bytes(16)
        head = f"scrypt {cost} {salt.hex()}\n".encode()
        write_whole(key, head + self._key.pem(_hardened(passphrase, cost, salt)), OWNER_ONLY)
        write_whole(certificate, self.pem)

    @property
    def fingerprint(self) -> bytes:
        """The 16 bytes by which a token names this root."""
        return root_fingerprint(self.certificate)

    def issuer(self, now: datetime, lifetime: timedelta = ISSUER_LIFETIME) -> "IssuingAuthority":
        """A new issuer, in memory only. It never outlives its root."""
        key = IdentityKey.generate()
        lifetime = min(lifetime, self.not_after - now)
        builder = _builder(
            _name(self.federation, "issuer"), self.certificate.subject, key.private.public_key(), now, lifetime
        )
        # Path length 0: RFC 5280, section 4.2.1.9. Whoever steals the server's key can make no authority with it.
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return IssuingAuthority(key, _signed(_with_authority_bits(builder, self._key), self._key))


class IssuingAuthority(_Authority):
    """The issuer that the server holds, which certifies parties."""

    def issue(
        self,
        identity: Identity,
        csr_der: bytes,
        now: datetime,
        lifetime: timedelta = LEAF_LIFETIME,
        hosts: Sequence[str] = (),
    ) -> bytes:
        """A chain (PEM: the party's certificate, then this issuer's) for the key in a CSR, and for nothing else in it.

        `hosts`: of the server, its DNS names and IP addresses. Raises ChannelError for a CSR that is none.
        """
        if identity.federation != self.federation:
            raise ValueError(f"{identity.uri} is not of federation {self.federation}")
        if now >= self.not_after:
            raise ChannelError(
                f"the issuer's certificate expired on {self.not_after:%Y-%m-%d}", "privet federation reissue"
            )
        key = key_in_csr(csr_der)
        lifetime = min(lifetime, self.not_after - now)  # no certificate outlives its issuer's
        # The subject is empty, so the alternative name is critical: RFC 5280, section 4.2.1.6.
        builder = _builder(x509.Name([]), self.certificate.subject, key, now, lifetime)
        builder = builder.add_extension(_names(identity, hosts), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([USAGE[identity.role]]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=False), critical=True)
        return _signed(_identified(builder, self._key), self._key).public_bytes(_PEM) + self.pem


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(path, _RESTORE))
    except (ValueError, UnsupportedAlgorithm):
        raise ChannelError(f"{path}: not a certificate", _RESTORE) from None


def _hardened(passphrase: bytes, cost: int, salt: bytes) -> bytes:
    """The password of the root's PEM file, hexadecimal: with it, openssl opens the key without privet."""
    try:
        return Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase).hex().encode()
    except ValueError:
        raise ChannelError(f"a root's key with a scrypt cost of {cost}, which is none", _RESTORE) from None


def key_in_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a CSR asks a certificate for; raise ChannelError unless its sender holds it."""
    remedy = "make the request with privet join"
    try:
        if len(csr_der) > LARGEST_CSR:
            raise ValueError
        request = x509.load_der_x509_csr(csr_der)
        key = p256(request.public_key())
        if not request.is_signature_valid:  # RFC 2986, section 4.2: proof that the private key is there
            raise ValueError
    except (ValueError, UnsupportedAlgorithm):
        raise ChannelError("not a request for a certificate", remedy) from None
    return key


def root_fingerprint(root: x509.Certificate) -> bytes:
    """The first 16 bytes of SHA-256 over a root's DER: 128 bits, against a second root made to match."""
    return root.fingerprint(hashes.SHA256())[:16]


def _name(federation: str, what: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"privet {what}"[:LONGEST_NAME]),
        ]
    )


def _names(identity: Identity, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATED)
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key)
    return builder.not_valid_after(now + lifetime).add_extension(subject_id, critical=False)


def _with_authority_bits(builder: x509.CertificateBuilder, signer: IdentityKey) -> x509.CertificateBuilder:
    return _identified(builder.add_extension(_key_usage(is_authority=True), critical=True), signer)


def _identified(builder: x509.CertificateBuilder, signer: IdentityKey) -> x509.CertificateBuilder:
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.private.public_key())
    return builder.add_extension(issuer_id, critical=False)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, signer: IdentityKey) -> x509.Certificate:
    return builder.sign(signer.private, hashes.SHA256())
