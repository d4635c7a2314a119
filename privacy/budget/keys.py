"""An institution's signing key: Ed25519 (RFC 8032), made on first use, never sent anywhere.

What is signed names what it is: every message begins with a purpose, so that a signature for one thing is none for
another. A key remembers for a while what it has signed (own_signatures.py), so that its owner's process does not verify
its own work; `is_signed` knows nothing of that, and is what everybody else asks.
"""

import os
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import LedgerError
from .own_signatures import OwnSignatures

Verify = Callable[[str, str, bytes, str], bool]  # as `is_signed`

_OWNER_ONLY = 0o600
_RAW = serialization.Encoding.Raw


class SigningKey:
    """A private key. `public` is its public half: 64 hexadecimal digits. `own`: what it has signed lately."""

    def __init__(self, private: Ed25519PrivateKey, own: OwnSignatures | None = None) -> None:
        """`own`: a memory that it shares with the other keys of a simulation; without it, it has one for itself."""
        self.own = OwnSignatures() if own is None else own
        self._private = private
        self.public = private.public_key().public_bytes(_RAW, serialization.PublicFormat.Raw).hex()

    @classmethod
    def generate(cls) -> Self:
        """A new key, in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(
        cls,
        path: Path,
        passphrase: bytes | None = None,
        *,
        own: OwnSignatures | None = None,
        survives_power_cut: bool = True,
    ) -> Self:
        """The key in a file (PKCS 8, PEM, mode 0600; encrypted where there is a passphrase), made if there is none.

        `survives_power_cut`: False where the ledger that it signs does not either, which is in simulations.
        Raises LedgerError when the file cannot be read as a key, or when others can read it.
        """
        try:
            return cls._load(path, passphrase, own)
        except FileNotFoundError:
            return cls._create(path, passphrase, own, survives_power_cut)

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """The key in a file that must be there."""
        try:
            return cls._load(path, passphrase, None)
        except FileNotFoundError:
            raise LedgerError(f"{path}: no key there", "restore the key from its backup") from None

    def sign(self, purpose: str, message: bytes) -> str:
        """The signature over purpose and message, hexadecimal."""
        framed = _framed(purpose, message)
        signature = self._private.sign(framed).hex()
        self.own.remember(self.public, framed, signature)
        return signature

    def is_signed(self, public: str, purpose: str, message: bytes, signature: str) -> bool:
        """Whether the holder of a public key signed this: as `is_signed` says, of whatever was not signed here.

        For the owner's own process, never for an auditor: see own_signatures.py.
        """
        return self.own.has(public, _framed(purpose, message), signature) or is_signed(
            public, purpose, message, signature
        )

    @classmethod
    def _load(cls, path: Path, passphrase: bytes | None, own: OwnSignatures | None) -> Self:
        try:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                raise LedgerError(f"{path}: others may read this key", f"chmod 600 {path}, and ask who has read it")
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LedgerError(f"{path}: cannot be read: {error.strerror}", "give a file that can be read") from None
        try:
            key = serialization.load_pem_private_key(content, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise LedgerError(
                f"{path}: not a key that opens with this passphrase", "give the right passphrase, or restore the key"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise LedgerError(f"{path}: not an Ed25519 key", "restore the institution's key from its backup")
        return cls(key, own)

    @classmethod
    def _create(cls, path: Path, passphrase: bytes | None, own: OwnSignatures | None, survives_power_cut: bool) -> Self:
        private = Ed25519PrivateKey.generate()
        protection: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                if survives_power_cut:
                    os.fsync(file.fileno())
            os.link(partial, path)  # whole or not at all, and never over another
        except FileExistsError:  # another process made it a moment ago
            return cls._load(path, passphrase, own)
        finally:
            partial.unlink()
        return cls(private, own)


def is_signed(public: str, purpose: str, message: bytes, signature: str) -> bool:
    """Whether the holder of the public key (hexadecimal) signed this message for this purpose."""
    try:
        key = _public_key(public)
        raw = bytes.fromhex(signature)
        key.verify(raw, _framed(purpose, message))
    except (ValueError, InvalidSignature):
        return False
    return signature == raw.hex()  # one way to write it: `fromhex` skips spaces and takes capitals


@lru_cache(maxsize=256)
def _public_key(public: str) -> Ed25519PublicKey:
    """Reading a key costs a tenth of what verifying with it does. Raises ValueError for one spelled otherwise."""
    raw = bytes.fromhex(public)
    if raw.hex() != public:
        raise ValueError("a key is written in small hexadecimal digits")
    return Ed25519PublicKey.from_public_bytes(raw)


def _framed(purpose: str, message: bytes) -> bytes:
    return b"privet/" + purpose.encode() + b"/v1\0" + message
