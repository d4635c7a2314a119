"""What an auditor is handed in files: an institution's public key (PEM, or 64 hexadecimal digits; a private key is
refused), and the root certificate of its federation.
"""

import hashlib
import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import LedgerError

LARGEST_KEY_FILE = 4096  # bytes; a public key in PEM has 113
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_REMEDY = "privet audit key, at the institution, prints the public key to hand over"


def read_public_key(path: Path) -> str:
    """The key in the file, 64 hexadecimal digits; raise LedgerError where it holds none, or a private one."""
    if not path.is_file():
        raise LedgerError(f"{path}: no such file", _REMEDY)
    with path.open("rb") as file:
        content = file.read(LARGEST_KEY_FILE + 1)
    if b"PRIVATE KEY" in content:
        raise LedgerError(
            f"{path}: a private key; an audit needs the public one only", f"keep this file where it belongs; {_REMEDY}"
        )
    if len(content) > LARGEST_KEY_FILE:
        raise LedgerError(f"{path}: above {LARGEST_KEY_FILE} bytes, so no public key", _REMEDY)
    text = "".join(line for line in content.decode("ascii", "replace").split("\n") if not line.startswith("#")).strip()
    if _HEX.fullmatch(text):
        return _checked(path, text.lower())
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise LedgerError(f"{path}: neither a public key in PEM nor 64 hexadecimal digits", _REMEDY) from None
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"{path}: not an Ed25519 key", _REMEDY)
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def read_root(path: Path) -> bytes:
    """The federation's root certificate in the file (PEM); raise LedgerError where it holds none."""
    remedy = "give identity/root.pem of the institution's folder, compared with the coordinator's fingerprint"
    if not path.is_file():
        raise LedgerError(f"{path}: no such file", remedy)
    with path.open("rb") as file:
        content = file.read(LARGEST_KEY_FILE + 1)
    try:
        if len(content) > LARGEST_KEY_FILE:
            raise ValueError("larger than a root certificate")
        x509.load_pem_x509_certificate(content)
    except (ValueError, UnsupportedAlgorithm):
        raise LedgerError(f"{path}: not a certificate in PEM", remedy) from None
    return content


def pem_of(public: str) -> str:
    """The key in PEM, for other programs."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form).decode()


def fingerprint(public: str) -> str:
    """SHA-256 of the key's raw bytes, in groups of four digits, to be read out on the telephone."""
    digest = hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]
    return " ".join(digest[place : place + 4] for place in range(0, len(digest), 4))


def _checked(path: Path, public: str) -> str:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    except ValueError:
        raise LedgerError(f"{path}: not an Ed25519 key", _REMEDY) from None
    return public
