"""A submission that an operator signed, and the one way to learn who did.

The server holds the issuing authority and hands submissions on, so that a node does not take its word: the signature is
over the exact bytes that are charged, and the certificate leads to the root that the node pinned when it joined. That
an authority could name a false operator is what pinned keys are for (client/operators.py).
"""

import re
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .channel.identities import UNREADABLE, Certificate, IdentityKey, Role
from .channel.identities import verified as verified_certificate
from .envelope import SUBMISSION_BYTES
from .errors import ChannelError, PrivetError, Refusal, RefusedError
from .plan_app import AnySubmission, submission_of

PURPOSE = "submission"  # a signature for anything else is none for this
SIGNATURE_BYTES = 72  # ECDSA P-256 in DER: two integers of at most 33 bytes, and six bytes around them
CERTIFICATES_BYTES = 16 * 1024  # two certificates in PEM take under 2 KiB
# Nothing may stand between or around the two certificates: the text is kept in ledgers, where one meaning has one form.
_CHAIN = re.compile(rb"(?:-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----\n){2}")
_REMEDY = "ask the operator to submit the plan again, with a certificate that is valid now"


@dataclass(frozen=True, slots=True)
class SignedSubmission:
    """A submission's canonical bytes, the operator's signature of them, and its certificates (PEM: own, issuer's)."""

    submission: bytes
    signature: bytes
    certificates: bytes


@dataclass(frozen=True, slots=True)
class Operator:
    """Who signed: name and key in the federation, as a certificate says that was verified."""

    name: str
    key_fingerprint: str
    certificate: Certificate


def sign(submission: AnySubmission, key: IdentityKey, chain: bytes) -> SignedSubmission:
    """The submission, signed. `chain`: the certificates of the operator that it names (PEM: own, issuer's)."""
    return SignedSubmission(submission.canonical, key.sign(PURPOSE, submission.canonical), chain)


def verified(signed: SignedSubmission, root_pem: bytes, federation: str, at: datetime) -> Operator:
    """The operator who signed, checked up to the federation's root at a moment.

    Raises RefusedError with code `not-signed`; whether the key was revoked since is the caller's question.
    """
    check_sizes(signed)
    try:
        submission = submission_of(signed.submission)
        # Chain, validity at that moment, key usage and role: RFC 5280, section 6.1, and SPIFFE X.509-SVID, section 5.
        certificate = verified_certificate(signed.certificates, root_pem, at, Role.OPERATOR)
    except PrivetError as error:
        raise _not_signed(error.message) from None
    # One trust domain: what another federation's operator signed is not asked of this one (SPIFFE ID, section 2.1).
    if submission.body.federation != federation:
        raise _not_signed(f"the submission is for federation {submission.body.federation}, this is {federation}")
    if problem := problem_of_signer(certificate, submission, signed.signature):
        raise _not_signed(problem)
    return Operator(certificate.identity.name, certificate.key_fingerprint, certificate)


def problem_of_signer(certificate: Certificate, submission: AnySubmission, signature: bytes) -> str | None:
    """Why the holder of a certificate did not sign this submission as the operator that it names; None where it did."""
    who, body = certificate.identity, submission.body
    if who.role is not Role.OPERATOR:  # a node's or the server's key submits nothing (DESIGN, section 10)
        return f"{who.uri} is not of role operator"
    if who.federation != body.federation:
        return f"{who.uri} is not of federation {body.federation}"
    if who.name != body.operator:  # who signs for another is not the operator that policy and ledger will name
        return f"the submission names operator {body.operator}, and {who.name} signed it"
    # Over the exact bytes, for this purpose and no other: FIPS 186-5, section 6.4.2.
    if not certificate.has_signed(PURPOSE, submission.canonical, signature):
        return f"the signature is not {who.name}'s over these bytes"
    return None


def check_sizes(signed: SignedSubmission) -> None:
    """Raise RefusedError for parts that are missing, larger than any real one, or not two certificates and no more."""
    for what, part, most in (
        ("submission", signed.submission, SUBMISSION_BYTES),
        ("signature", signed.signature, SIGNATURE_BYTES),
        ("certificates", signed.certificates, CERTIFICATES_BYTES),
    ):
        if not part:
            raise _not_signed(f"no {what} came with the request")
        if len(part) > most:
            raise _not_signed(f"{what} of {len(part)} bytes, allowed are {most}")
    if not _CHAIN.fullmatch(signed.certificates):
        raise _not_signed("its certificates are not two in PEM, and nothing else")


def certificate_in(chain: bytes) -> Certificate:
    """The certificate at the head of a chain as `check_sizes` lets it pass, unverified; raise ChannelError."""
    if len(chain) > CERTIFICATES_BYTES or not _CHAIN.fullmatch(chain):
        raise ChannelError("not two certificates in PEM", _REMEDY)
    try:
        first = x509.load_pem_x509_certificates(chain)[0]
    except UNREADABLE:
        raise ChannelError("not two certificates in PEM", _REMEDY) from None
    return Certificate.of_der(first.public_bytes(Encoding.DER))


def _not_signed(why: str) -> RefusedError:
    return RefusedError(Refusal.NOT_SIGNED, f"not signed by an operator of this federation: {why}", _REMEDY)
