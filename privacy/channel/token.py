"""The one thing that an institution is given to join with: a line of text, good for one key and for one day.

    privet1-BASE32

Inside: JSON of addresses, name and role; the first 16 bytes of SHA-256 of the federation's root, by which the joining
party knows that it speaks with this federation; a secret of 128 bits, of which the server keeps SHA-256 alone (guessing
128 random bits is hopeless, so no slow hash is needed); and a checksum, so that a typing error is found before anything
is sent. Name and role are for the reader: the server goes by its own record.
"""

import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Self

from ..errors import EnrolmentError, PrivetError
from .identities import Identity, Role

PREFIX = "privet1-"
SECRET_BYTES = FINGERPRINT_BYTES = 16
LONGEST_TOKEN = 2048  # characters; a usual one has 250
_CHECKSUM_BYTES = 4
_ASK = "copy the whole token again, or ask the coordinator for a new one"


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Its secret is in no repr."""

    federation: str
    role: Role
    name: str
    address: str
    enrolment_address: str
    root_fingerprint: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES or len(self.root_fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"secret and fingerprint have {SECRET_BYTES} and {FINGERPRINT_BYTES} bytes")
        Identity(self.federation, self.role, self.name)

    @property
    def identity(self) -> Identity:
        """Whose it is, as the coordinator wrote it."""
        return Identity(self.federation, self.role, self.name)

    def text(self) -> str:
        """The line to hand over, in lower case: it can be read out, typed and pasted."""
        said = [self.federation, self.role.value, self.name, self.address, self.enrolment_address]
        content = self.root_fingerprint + self.secret + json.dumps(said, separators=(",", ":")).encode()
        coded = base64.b32encode(_checksum(content) + content).decode().rstrip("=").lower()
        return PREFIX + coded

    @classmethod
    def of(cls, text: str) -> Self:
        """The token in a line; raise EnrolmentError, which never repeats it, for anything else."""
        line = "".join(text.split()).lower()  # a mail program may have wrapped it
        if not line.startswith(PREFIX) or len(line) > LONGEST_TOKEN:
            raise EnrolmentError(f"this is not a token: one begins with {PREFIX}", _ASK)
        content = _unpacked(line.removeprefix(PREFIX))
        try:
            federation, role, name, address, enrolment_address = json.loads(content[32:])
            checked_address(address), checked_address(enrolment_address)
            return cls(federation, Role(role), name, address, enrolment_address, content[:16], content[16:32])
        except (ValueError, TypeError, PrivetError):
            raise EnrolmentError("the token is of a kind that this privet does not know", "update privet") from None


def new_secret() -> bytes:
    """A fresh secret, from the operating system."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_hash(secret: bytes) -> str:
    """What the server keeps of a secret, hexadecimal."""
    return hashlib.sha256(b"privet/token/v1\0" + secret).hexdigest()


def checked_address(text: str) -> str:
    """An address `HOST:PORT`, as it was given; raise EnrolmentError for anything else."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_host = bool(bare) and len(bare) <= 253 and all(c.isascii() and (c.isalnum() or c in "-.:_") for c in bare)
    if not is_host or not port.isdecimal() or not port.isascii() or not 0 < int(port) < 1 << 16:
        raise EnrolmentError(f"{text[:80]!r} is not an address", "HOST:PORT, such as fl.example.org:9443")
    return text


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address; an IPv6 host loses its brackets."""
    host, _, port = checked_address(address).rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _unpacked(coded: str) -> bytes:
    try:
        raw = base64.b32decode(coded.upper() + "=" * (-len(coded) % 8))
    except (binascii.Error, ValueError):
        raw = b""
    checksum, content = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if not content or checksum != _checksum(content):
        raise EnrolmentError("the token was not copied right: its checksum does not fit", _ASK)
    return content


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECKSUM_BYTES]
