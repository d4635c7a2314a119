"""Attendance: a node's signature that it takes part in a run, and how those of a round's cohort travel together.

What a count of them shows: so many holders of certified keys have each said that they take part in this very
submission. The coordinator holds the issuing authority, and can certify as many friendly nodes as it likes; it does not
hold the keys of peers that an institution pinned, and cannot sign for them.
What it does not show: that a peer's update is in a round's sum. The coordinator can leave a peer out afterwards, and
can name one that has gone away since. Nor that two keys are two institutions, where nobody pinned them.

The rules:
1. A signature is for this purpose and no other, over run and submission; the submission's hash covers the federation.
2. Its certificate leads to the federation's root, is a node's, and was valid at a moment when the signature can have
   been made: since the submission began, and not after now. Certificates live for a day, runs for weeks.
3. What is malformed is refused as a whole; what is well-formed and does not hold is not counted.

Layout: 1; number of issuers, each as length and DER; number of parties, each as its issuer's place, length and
signature, length and DER of its certificate. The first byte is the format, every number takes two, big-endian. A party
takes about 545 bytes, 0.55 MB for a thousand; an issuer, of which a federation has one or two, about 450, once.
"""

import json
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .channel.identities import UNREADABLE, Certificate, IdentityKey, Role, verified
from .envelope import time_of
from .errors import ChannelError
from .signed import CERTIFICATES_BYTES, SIGNATURE_BYTES
from .submission import Submission

PURPOSE = "attendance"  # a signature for anything else is none for this
MOST_PARTIES = 4096  # of a round that are told; checking so many takes a node some two seconds, once
COHORT_BYTES = 4 * 2**20  # a request's records may hold eight times as many (privacy/channel/limits.py)
CERTIFICATE_BYTES = 2048  # DER; a certificate of ours with the longest names takes a third of it
FORMAT = 1
# Who decides which parties count, in words for the institution: by whether it pinned any.
COUNTED_IN_WORDS: Mapping[bool, str] = {
    True: "only parties pinned by the institution count",
    False: "coordinator trusted to name parties",
}
_NUMBER = 2  # bytes
_REMEDY = "ask the coordinator"


@dataclass(frozen=True, slots=True)
class Attendance:
    """One node's signature that it takes part, with its certificate and its issuer's, DER. Nothing of it is checked."""

    signature: bytes
    certificate: bytes
    issuer: bytes

    @classmethod
    def of_pem(cls, signature: bytes, chain: bytes) -> Self:
        """Of a node's reply (PEM: own certificate, issuer's); raise ChannelError for what no node of ours sends."""
        if not 0 < len(signature) <= SIGNATURE_BYTES or len(chain) > CERTIFICATES_BYTES:
            raise _malformed(f"a signature of {len(signature)} bytes with certificates of {len(chain)}")
        try:
            ders = [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(chain)]
        except UNREADABLE:
            raise _malformed("certificates that cannot be read") from None
        if len(ders) != 2 or max(map(len, ders)) > CERTIFICATE_BYTES:
            raise _malformed(f"{len(ders)} certificates of {sum(map(len, ders))} bytes")
        return cls(signature, *ders)

    @property
    def chain(self) -> bytes:
        """Both certificates, PEM."""
        return "".join(map(ssl.DER_cert_to_PEM_cert, (self.certificate, self.issuer))).encode("ascii")


def attend(submission: Submission, key: IdentityKey, chain: bytes) -> Attendance:
    """Sign that the key's holder takes part. `chain`: its certificates (PEM: own, issuer's)."""
    return Attendance.of_pem(key.sign(PURPOSE, statement(submission)), chain)


def statement(submission: Submission) -> bytes:
    """What is signed."""
    said = {"run": submission.run_id, "submission": submission.hash}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def attending(attendance: Attendance, submission: Submission, root_pem: bytes, now: datetime) -> Certificate:
    """The node that takes part, checked up to the federation's root; raise ChannelError for anything else.

    Whether its key was revoked, and whether it counts, is the caller's question.
    """
    said = Certificate.of_der(attendance.certificate)
    if said.not_after < time_of(submission.body.not_before):
        raise ChannelError(f"the certificate of {said.identity.uri} had expired before the submission began", _REMEDY)
    certificate = verified(attendance.chain, root_pem, min(now, said.not_after), Role.NODE)
    if certificate.identity.federation != submission.body.federation:
        raise ChannelError(f"{said.identity.uri} is not of federation {submission.body.federation}", _REMEDY)
    if not certificate.has_signed(PURPOSE, statement(submission), attendance.signature):
        raise ChannelError(f"{said.identity.uri} has not signed that it takes part in this", _REMEDY)
    return certificate


def encoded(attendances: Iterable[Attendance]) -> bytes:
    """Those of a cohort as they travel; what would go above `MOST_PARTIES` or `COHORT_BYTES` is left out."""
    issuers: dict[bytes, int] = {}
    parties: list[bytes] = []
    left = COHORT_BYTES - 1 - 2 * _NUMBER
    for attendance in attendances:
        place = issuers.get(attendance.issuer, len(issuers))
        party = _numbered(place) + _framed(attendance.signature) + _framed(attendance.certificate)
        left -= len(party) + (0 if attendance.issuer in issuers else len(_framed(attendance.issuer)))
        if left < 0 or len(parties) == MOST_PARTIES:
            break
        issuers[attendance.issuer] = place
        parties.append(party)
    heads = [bytes([FORMAT]), _numbered(len(issuers)), *map(_framed, issuers)]
    return b"".join([*heads, _numbered(len(parties)), *parties])


def decoded(content: bytes) -> Sequence[Attendance]:
    """Those of a cohort, unchecked; raise ChannelError for what is no such list, or a larger one than is allowed."""
    if len(content) > COHORT_BYTES:
        raise _malformed(f"a cohort of {len(content)} bytes, allowed are {COHORT_BYTES}")
    reader = _Reader(content)
    if reader.take(1) != bytes([FORMAT]):
        raise _malformed("a cohort in an unknown format")
    issuers = [reader.framed(CERTIFICATE_BYTES) for _ in range(reader.number(MOST_PARTIES))]
    found = []
    for _ in range(reader.number(MOST_PARTIES)):
        place = reader.number(MOST_PARTIES)
        if place >= len(issuers):
            raise _malformed(f"a party of issuer {place}, of {len(issuers)}")
        signature, certificate = reader.framed(SIGNATURE_BYTES), reader.framed(CERTIFICATE_BYTES)
        found.append(Attendance(signature, certificate, issuers[place]))
    reader.end()
    return found


class _Reader:
    """Reads what is there, whatever a length says."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._content) - self._at:
            raise _malformed("a cohort that is cut short")
        self._at += size
        return self._content[self._at - size : self._at]

    def number(self, most: int) -> int:
        number = int.from_bytes(self.take(_NUMBER), "big")
        if number > most:
            raise _malformed(f"{number} in a cohort, allowed are {most}")
        return number

    def framed(self, most: int) -> bytes:
        return self.take(self.number(most))

    def end(self) -> None:
        if self._at != len(self._content):
            raise _malformed("more than a cohort")


def _numbered(number: int) -> bytes:
    return number.to_bytes(_NUMBER, "big")


def _framed(content: bytes) -> bytes:
    return _numbered(len(content)) + content


def _malformed(why: str) -> ChannelError:
    return ChannelError(f"not signatures of a cohort: {why}", _REMEDY)
