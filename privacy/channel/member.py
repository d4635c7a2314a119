"""What a member of a federation keeps in `identity/`: key, certificate, the federation's root, and where its server is.

key.pem           ECDSA P-256, mode 0600; encrypted where the institution gave a passphrase
chain.pem         the member's certificate and its issuer's; replaced at every renewal
root.pem          what the token's fingerprint was compared with; never replaced
membership.json   federation, role, name, address, enrolment_address
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ChannelError, EnrolmentError
from .files import read_file, write_whole
from .identities import Certificate, Identity, IdentityKey, Role, verified

IDENTITY = "identity"  # the folder in a party's home
RENEWED_AT = 2 / 3  # of a certificate's life: what is left bridges an outage of eight hours
_JOIN = "privet join TOKEN, with a token from the coordinator"
_DAMAGED = "restore the folder from its backup, or ask the coordinator for a new invitation"


@dataclass(frozen=True, slots=True)
class Membership:
    """Who a member is and where its server listens, as `HOST:PORT`."""

    federation: str
    role: Role
    name: str
    address: str
    enrolment_address: str

    @property
    def identity(self) -> Identity:
        """The member's identity."""
        return Identity(self.federation, self.role, self.name)

    def text(self) -> bytes:
        """The content of membership.json."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @classmethod
    def of_text(cls, content: bytes) -> Self:
        """What membership.json says; raise ValueError for anything else."""
        said = json.loads(content)
        if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
            raise ValueError("not an object of texts")
        try:
            return cls(**{**said, "role": Role(said["role"])})
        except (TypeError, KeyError) as error:
            raise ValueError("not a membership") from error


class Member:
    """A party that joined. `chain` and `certificate` change when it renews; nothing else does."""

    def __init__(self, folder: Path, membership: Membership, key: IdentityKey, chain: bytes, root: bytes) -> None:
        self.folder = folder
        self.membership = membership
        self.identity = membership.identity
        self.address = membership.address
        self.enrolment_address = membership.enrolment_address
        self.key = key
        self.root = root
        self.chain = chain
        self.certificate = _head(chain)
        if self.certificate.identity != self.identity or self.certificate.key_fingerprint != key.fingerprint:
            raise ChannelError(f"{folder}: certificate, key and membership are not of one party", _DAMAGED)

    @classmethod
    def load(cls, folder: Path, passphrase: bytes | None = None) -> Self:
        """The member in a folder; raise EnrolmentError where nobody joined, ChannelError where it is damaged."""
        if not has_joined(folder):
            raise EnrolmentError(f"{folder}: nobody has joined a federation here", _JOIN)
        try:
            membership = Membership.of_text(read_file(folder / "membership.json", _DAMAGED))
        except ValueError:
            raise ChannelError(f"{folder / 'membership.json'}: not a membership", _DAMAGED) from None
        chain, root = (read_file(folder / name, _DAMAGED) for name in ("chain.pem", "root.pem"))
        return cls(folder, membership, IdentityKey.load(folder / "key.pem", passphrase), chain, root)

    @classmethod
    def create(
        cls, folder: Path, membership: Membership, key: IdentityKey, chain: bytes, root: bytes, now: datetime,
        passphrase: bytes | None = None,
    ) -> Self:  # fmt: skip
        """A new member, checked and written. The membership comes last: with it the folder is a member's."""
        verified(chain, root, now, membership.role)
        member = cls(folder, membership, key, chain, root)
        key.save(folder / "key.pem", passphrase)
        write_whole(folder / "root.pem", root)
        write_whole(folder / "chain.pem", chain)
        write_whole(folder / "membership.json", membership.text())
        return member

    def is_renewal_due(self, now: datetime) -> bool:
        """Whether two thirds of the certificate's life are over."""
        return now >= self.renewal_due()

    def renewal_due(self) -> datetime:
        """When two thirds of the certificate's life are over."""
        begin, end = self.certificate.not_before, self.certificate.not_after
        return begin + RENEWED_AT * (end - begin)

    def is_expired(self, now: datetime) -> bool:
        """Whether the certificate is of use no longer."""
        return now > self.certificate.not_after

    def keep_chain(self, chain: bytes, now: datetime) -> None:
        """Use a renewed certificate from now on; raise ChannelError unless it is this member's, and valid."""
        renewed = verified(chain, self.root, now, self.identity.role)
        if renewed.identity != self.identity or renewed.key_fingerprint != self.key.fingerprint:
            raise ChannelError(f"a certificate came that is not of {self.identity.uri}", "tell the coordinator")
        write_whole(self.folder / "chain.pem", chain)
        self.chain, self.certificate = chain, renewed


def has_joined(folder: Path) -> bool:
    """Whether a member's folder is complete."""
    return (folder / "membership.json").exists()


def own_certificate(folder: Path) -> Certificate:
    """What a member's certificate says, for its own eyes: its key, which may need a passphrase, is not opened."""
    return _head(read_file(folder / "chain.pem", _DAMAGED))


def _head(chain: bytes) -> Certificate:
    """What the first certificate of one's own chain says; it may have expired."""
    try:
        return Certificate.of_der(x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER))
    except ValueError:
        raise ChannelError("chain.pem: not a chain of certificates", _DAMAGED) from None
