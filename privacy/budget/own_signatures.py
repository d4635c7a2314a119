"""OwnSignatures: what the keys of this process have signed, so that it need not verify its own work again.

A ledger is read back right after it was written, and in a simulation the witness reads the heads that this very
process has signed. Ed25519 is correct: a signature that the private key has made is one that the public key accepts,
so of these exact bytes the arithmetic could say nothing else. The rules:
1. Only `SigningKey.sign` puts anything in, at the moment when it has signed it: never what was read or received, nor
   what was found good.
2. What is looked up is everything that the arithmetic would look at: key, purpose, message and signature. Whatever
   differs in one byte is not found, and is verified for real; so is all that another process has written.
3. An auditor has no such memory: `privacy/audit` verifies with `keys.is_signed`, which looks nothing up.
4. It belongs to the one who checks, and is handed on in sight (a key's own, a simulation's): nothing here is global.
5. It forgets. What is forgotten is verified for real.
"""

import hashlib

# Of each of two generations: the heads and entries of some hundred requests, which is far longer than they are read
# back. About 100 bytes each.
_MOST = 2**12
_PUBLIC_DIGITS, _SIGNATURE_DIGITS = 64, 128  # hexadecimal, of Ed25519


class OwnSignatures:
    """A bounded memory of signatures. Several threads may use it."""

    def __init__(self, most: int = _MOST) -> None:
        """`most`: after so many, what is older than the last `most` is forgotten."""
        self._most = most
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()

    def remember(self, public: str, framed: bytes, signature: str) -> None:
        """For `SigningKey.sign` alone; see rule 1."""
        if len(self._newer) >= self._most:
            self._older, self._newer = self._newer, set()
        self._newer.add(_digest(public, framed, signature))

    def has(self, public: str, framed: bytes, signature: str) -> bool:
        """Whether this very signature was made here. False says nothing: verify it."""
        if (len(public), len(signature)) != (_PUBLIC_DIGITS, _SIGNATURE_DIGITS):  # or two triples could look alike
            return False
        if not (public.isascii() and signature.isascii()):
            return False
        digest = _digest(public, framed, signature)
        return digest in self._newer or digest in self._older


def _digest(public: str, framed: bytes, signature: str) -> bytes:
    """One for each triple: the first two parts have fixed lengths."""
    return hashlib.sha256(b"".join((public.encode(), signature.encode(), framed))).digest()
