"""How a party gets its certificates: by a token, once; by its certificate, while it is good; by its key, after a while.

The rules:
1. Name and role come from the server's own record. Of a request only the key is read.
2. Everything is checked before anything changes. Every refusal is an error whose message is for the server's log alone;
   enrolment.py tells the caller less.
3. Operators and auditors keep their key as long as they are members: institutions pin its fingerprint.
"""

import logging
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel.authority import LEAF_LIFETIME, IssuingAuthority, key_in_csr, root_fingerprint
from ..privacy.channel.credentials import Peer
from ..privacy.channel.identities import Certificate, Identity, Role, fingerprint_of, verified
from ..privacy.channel.renewal import RETURN, returning
from ..privacy.channel.token import SECRET_BYTES, Token, new_secret
from ..privacy.errors import ChannelError, EnrolmentError
from .federation_home import FederationFacts, FederationHome
from .members import Members, Standing

log = logging.getLogger("privet.server.enrolment")

TOKEN_LIFETIME = timedelta(hours=24)
LONGEST_TOKEN_LIFETIME = timedelta(days=30)  # a secret that lies about longer wants to be made anew
WAY_BACK = timedelta(days=30)  # after a certificate's end; then the coordinator looks again
NONCE_BYTES = 32
_NONCE_SECONDS = 60.0  # between challenge and answer; both are made by a program
_MOST_NONCES = 10_000  # one a key, and only keys that were certified get one
_JOIN = "ask the coordinator for a new invitation"


@dataclass(frozen=True, slots=True)
class _Nonce:
    value: bytes
    until: datetime


class Registrar:
    """Certifies members. Its methods may be called from any thread; each waits for the database."""

    def __init__(
        self,
        home: FederationHome,
        members: Members,
        clock: Clock = system_clock,
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> None:
        self._facts: FederationFacts = home.facts
        self._members = members
        self._clock = clock
        self._lifetime = lifetime
        self._issuing: IssuingAuthority = home.issuing()
        self._root, self._issuers = home.root, home.issuers()
        self._nonces: OrderedDict[str, _Nonce] = OrderedDict()
        self._lock = threading.Lock()

    def invite(
        self, name: str, role: Role, valid: timedelta = TOKEN_LIFETIME, replaces: bool = False
    ) -> tuple[Token, datetime]:
        """A token for a new member, and when it ends; raise EnrolmentError where the name cannot be invited."""
        if not timedelta() < valid <= LONGEST_TOKEN_LIFETIME:
            most = LONGEST_TOKEN_LIFETIME // timedelta(hours=1)
            raise EnrolmentError(
                f"--valid {valid / timedelta(hours=1):g}: not above 0 hours and at most {most}", "--valid 24"
            )
        facts, secret, expires = self._facts, new_secret(), self._clock() + valid
        fingerprint = root_fingerprint(x509.load_pem_x509_certificate(self._root))
        token = Token(facts.name, role, name, facts.address, facts.enrolment_address, fingerprint, secret)
        self._members.invite(name, role, secret, expires, replaces)
        return token, expires

    def join(self, secret: bytes, csr: bytes) -> bytes:
        """The chain of a new member; the same secret and key again give another one, until the token ends."""
        now, key = self._clock(), fingerprint_of(key_in_csr(csr))
        if len(secret) != SECRET_BYTES:
            raise EnrolmentError(f"a secret of {len(secret)} bytes; it has {SECRET_BYTES}", _JOIN)
        name, role = self._members.redeem(secret, key, now)
        return self._issue(Identity(self._facts.name, role, name), csr, now, by=key)

    def renew(self, peer: Peer, csr: bytes) -> bytes:
        """Another chain for a member in good standing."""
        now = self._clock()
        self._members.check(peer, now.timestamp())
        self._check_key(peer, csr)
        return self._issue(peer.identity, csr, now, by=peer.key_fingerprint)

    def leave(self, peer: Peer) -> None:
        """End a membership at the member's own wish."""
        now = self._clock()
        self._members.check(peer, now.timestamp())
        self._members.revoke(peer.identity.name, "left by its own wish", now, Standing.LEFT)

    def challenge(self, certificate_der: bytes) -> bytes:
        """A nonce for the holder of a certificate that ended; good once, for a minute, and one a key."""
        certificate, now = self._of_member(certificate_der), self._clock()
        nonce = _Nonce(secrets.token_bytes(NONCE_BYTES), now + timedelta(seconds=_NONCE_SECONDS))
        with self._lock:
            self._nonces[certificate.key_fingerprint] = nonce
            self._nonces.move_to_end(certificate.key_fingerprint)
            if len(self._nonces) > _MOST_NONCES:
                self._nonces.popitem(last=False)
        return nonce.value

    def come_back(self, certificate_der: bytes, nonce: bytes, signature: bytes, csr: bytes) -> bytes:
        """Another chain for a member whose certificate ended, and whose key signed the nonce and this request."""
        certificate, now = self._of_member(certificate_der), self._clock()
        self._check_key(certificate, csr)
        if not certificate.has_signed(RETURN, returning(nonce, csr), signature):
            raise EnrolmentError(f"{certificate.identity.uri}: not signed by its key", _JOIN)
        with self._lock:
            given = self._nonces.pop(certificate.key_fingerprint, None)
        if given is None or not secrets.compare_digest(given.value, nonce) or now > given.until:
            raise EnrolmentError(f"{certificate.identity.uri}: a nonce that is not open", _JOIN)
        return self._issue(certificate.identity, csr, now, by=certificate.key_fingerprint)

    def _of_member(self, certificate_der: bytes) -> Certificate:
        """A certificate that this federation gave to one who still is a member, and that ended not long ago."""
        said, now = Certificate.of_der(certificate_der), self._clock()
        pem = x509.load_der_x509_certificate(said.der).public_bytes(Encoding.PEM)
        certificate = self._verified(pem, min(now, said.not_after))
        if now > certificate.not_after + WAY_BACK:
            raise EnrolmentError(f"{said.identity.uri}: ended more than {WAY_BACK.days} days ago", _JOIN)
        self._members.check_standing(certificate)
        return certificate

    def _verified(self, pem: bytes, at: datetime) -> Certificate:
        """Verified by the issuer that made it: the present one, or the one before a `federation reissue`."""
        for issuer in self._issuers[1:]:
            try:
                return verified(pem + issuer, self._root, at)
            except ChannelError:
                continue
        return verified(pem + self._issuers[0], self._root, at)

    def _check_key(self, member: Peer | Certificate, csr: bytes) -> None:
        if member.identity.role is not Role.NODE and fingerprint_of(key_in_csr(csr)) != member.key_fingerprint:
            raise EnrolmentError(
                f"{member.identity.uri} asks with another key, which institutions have not pinned", _JOIN
            )

    def _issue(self, identity: Identity, csr: bytes, now: datetime, by: str) -> bytes:
        chain = self._issuing.issue(identity, csr, now, self._lifetime)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        certificate = Certificate.of_der(leaf.public_bytes(Encoding.DER))
        self._members.record(certificate, now, by)
        log.info("certified %s, key %s, serial %s", identity.uri, certificate.key_fingerprint, certificate.serial)
        return chain
