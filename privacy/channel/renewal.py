"""What a member sends for its next certificate; `Member.keep_chain` takes what comes back."""

import hashlib

from . import privet_pb2 as pb
from .member import Member

RETURN = "return"  # the purpose of the signature


def renewal_request(member: Member) -> pb.RenewRequest:
    """For Membership.Renew, while the certificate is good. The member keeps its key."""
    return pb.RenewRequest(csr=member.key.csr())


def challenge_request(member: Member) -> pb.ChallengeRequest:
    """For Enrolment.Challenge, after the certificate's end."""
    return pb.ChallengeRequest(certificate=member.certificate.der)


def return_request(member: Member, nonce: bytes) -> pb.ReturnRequest:
    """For Enrolment.Return: the key signs the server's nonce, and the request that it came with."""
    csr = member.key.csr()
    signature = member.key.sign(RETURN, returning(nonce, csr))
    return pb.ReturnRequest(certificate=member.certificate.der, nonce=nonce, signature=signature, csr=csr)


def returning(nonce: bytes, csr: bytes) -> bytes:
    """What is signed: without the request's hash, a signature that was overheard could be used for another key."""
    return hashlib.sha256(nonce).digest() + hashlib.sha256(csr).digest()
