"""Whose submission it is: what a server, a node or a stranger could pass off as an operator's."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from privet.privacy.channel.identities import Role
from privet.privacy.errors import ChannelError, Refusal, RefusedError
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app
from privet.privacy.signed import (
    CERTIFICATES_BYTES,
    PURPOSE,
    SIGNATURE_BYTES,
    Operator,
    SignedSubmission,
    certificate_in,
    problem_of_signer,
    sign,
    verified,
)
from privet.privacy.submission import Submission
from signers import NOW, Authority, Party

Make = Callable[..., Submission]
AUTHORITY = Authority("test")
ALICE = AUTHORITY.party("tester")  # the operator whom the submissions name


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    return make_submission(private=True)


@pytest.fixture
def signed(submission: Submission) -> SignedSubmission:
    return ALICE.signs(submission)


def check(signed: SignedSubmission, after: timedelta = timedelta(), federation: str = "test") -> Operator:
    return verified(signed, AUTHORITY.root_pem, federation, NOW + after)


def why_not(signed: SignedSubmission, after: timedelta = timedelta(), federation: str = "test") -> str:
    """The reason why it counts as unsigned."""
    with pytest.raises(RefusedError) as caught:
        check(signed, after, federation)
    assert caught.value.code == Refusal.NOT_SIGNED
    assert caught.value.remedy
    return caught.value.message


def test_operator_is_who_signed(signed: SignedSubmission) -> None:
    operator = check(signed)
    assert (operator.name, operator.key_fingerprint) == ("tester", ALICE.key.fingerprint)
    assert operator.certificate.identity.uri == "spiffe://test/operator/tester"
    assert certificate_in(signed.certificates) == operator.certificate


def test_submission_of_an_app_is_signed_alike() -> None:
    plan = AppPlan.model_validate(
        {"run": {"name": "a"}, "app": {"name": "quickstart"}, "privacy": {"unit": "none"}}, strict=True
    )
    asked = resolve_app(plan, federation="test", run_id="a-1", operator="tester", now=NOW)
    assert check(ALICE.signs(asked)).name == "tester"
    other = resolve_app(plan, federation="test", run_id="a-2", operator="tester", now=NOW)
    assert "not tester's over these bytes" in why_not(replace(ALICE.signs(asked), submission=other.canonical))
    assert isinstance(other, AppSubmission)


def test_submission_altered_by_the_server(signed: SignedSubmission, make_submission: Make) -> None:
    """Also by as little as a run id or a seed: more rounds at the price of fewer, or the same run again."""
    for altered in (
        make_submission("run.seed=4", private=True),
        make_submission(private=True, run_id="run-2"),
        make_submission("run.rounds=3", private=True),
    ):
        assert "not tester's over these bytes" in why_not(replace(signed, submission=altered.canonical))


def test_submission_in_another_spelling(signed: SignedSubmission) -> None:
    assert "not canonical" in why_not(replace(signed, submission=signed.submission.replace(b":", b": ", 1)))


@pytest.mark.parametrize("part", ["submission", "signature", "certificates"])
def test_unsigned_submission(signed: SignedSubmission, part: str) -> None:
    assert f"no {part} came with the request" in why_not(replace(signed, **{part: b""}))


def test_operator_of_another_federation(submission: Submission) -> None:
    stranger = Authority("others").party("tester")
    told = why_not(stranger.signs(submission))
    assert "spiffe://others/operator/tester does not lead to the federation's root" in told


def test_another_authority_of_the_same_name(submission: Submission) -> None:
    """Anybody can make a root that calls itself `test`; the node holds another."""
    impostor = Authority("test").party("tester")
    assert "does not lead to the federation's root" in why_not(impostor.signs(submission))


def test_submission_for_another_federation(signed: SignedSubmission) -> None:
    assert "is for federation test, this is others" in why_not(signed, federation="others")


def test_right_federation_in_the_certificate_and_another_in_the_submission(make_submission: Make) -> None:
    """An operator of two federations: what it signed for one is not asked of the other."""
    there = Authority("others")
    both = there.party("tester", key=ALICE.key)
    asked = make_submission()
    with pytest.raises(RefusedError, match="is for federation test, this is others"):
        verified(both.signs(asked), there.root_pem, "others", NOW)
    with pytest.raises(RefusedError, match="is not of federation test"):
        verified(both.signs(asked), there.root_pem, "test", NOW)


def test_operator_who_signs_for_another(submission: Submission) -> None:
    bob = AUTHORITY.party("bob")
    assert "names operator tester, and bob signed it" in why_not(bob.signs(submission))


def test_right_certificate_other_key(submission: Submission, signed: SignedSubmission) -> None:
    other = AUTHORITY.party("tester")
    assert "not tester's over these bytes" in why_not(replace(signed, certificates=other.chain))
    assert "not tester's over these bytes" in why_not(replace(other.signs(submission), certificates=ALICE.chain))


@pytest.mark.parametrize("role", [Role.NODE, Role.AUDITOR])
def test_node_certificate_signs_nothing(submission: Submission, role: Role) -> None:
    node = AUTHORITY.party("tester", role)
    assert f"spiffe://test/{role}/tester is not of role operator" in why_not(node.signs(submission))
    found = problem_of_signer(certificate_in(node.chain), submission, node.signs(submission).signature)
    assert found == f"spiffe://test/{role}/tester is not of role operator"


@pytest.mark.parametrize("after", [timedelta(hours=24, seconds=1), timedelta(days=30), timedelta(hours=-1)])
def test_expired_operator_certificate_at_admission(signed: SignedSubmission, after: timedelta) -> None:
    assert re.search(r"expired on 2026-11-23|is valid from 2026-11-22", why_not(signed, after))


def test_signature_for_another_purpose(submission: Submission, signed: SignedSubmission) -> None:
    """What an operator signs to renew its certificate, or a node to enter its ledger, submits nothing."""
    for purpose in ("return", "ledger-entry", "submissio", ""):
        other = replace(signed, signature=ALICE.key.sign(purpose, submission.canonical))
        assert "not tester's over these bytes" in why_not(other)
    bare = ALICE.key.private.sign(submission.canonical, ec.ECDSA(hashes.SHA256()))
    assert "not tester's over these bytes" in why_not(replace(signed, signature=bare))
    assert PURPOSE == "submission"


@pytest.mark.parametrize("signature", [b"\x00", b"\x30\x00", b"x" * SIGNATURE_BYTES])
def test_signature_that_is_none(signed: SignedSubmission, signature: bytes) -> None:
    assert "not tester's over these bytes" in why_not(replace(signed, signature=signature))


def test_every_bit_of_a_signature_counts(signed: SignedSubmission) -> None:
    for place in range(len(signed.signature)):
        flipped = bytearray(signed.signature)
        flipped[place] ^= 1
        assert why_not(replace(signed, signature=bytes(flipped)))


def certificates_of(chain: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN.*?END CERTIFICATE-----\n", chain, re.DOTALL)


@pytest.mark.parametrize(
    "change",
    [
        lambda own, issuer: own,
        lambda own, issuer: issuer + own,
        lambda own, issuer: own + issuer + issuer,
        lambda own, issuer: own + own,
        lambda own, issuer: b"# a note\n" + own + issuer,
        lambda own, issuer: own + issuer + b"\n",
        lambda own, issuer: own + b"\n" + issuer,
        lambda own, issuer: (own + issuer).replace(b"\n", b"\r\n"),
        lambda own, issuer: own + issuer.replace(b"CERTIFICATE", b"PRIVATE KEY"),
        lambda own, issuer: own.replace(b"M", b"N", 1) + issuer,
        lambda own, issuer: own[:200] + own[-27:] + issuer,
        lambda own, issuer: b"\xff" * 500,
        lambda own, issuer: own * (CERTIFICATES_BYTES // len(own) + 1),
    ],
)
def test_certificates_that_are_not_two_in_pem(
    signed: SignedSubmission, change: Callable[[bytes, bytes], bytes]
) -> None:
    own, issuer = certificates_of(signed.certificates)
    assert why_not(replace(signed, certificates=change(own, issuer)))


def test_parts_larger_than_any_real_one(signed: SignedSubmission) -> None:
    assert "allowed are 72" in why_not(replace(signed, signature=b"x" * 73))
    assert "allowed are 65536" in why_not(replace(signed, submission=b"x" * 65537))
    large = b"x" * (CERTIFICATES_BYTES + 1)
    assert f"allowed are {CERTIFICATES_BYTES}" in why_not(replace(signed, certificates=large))
    with pytest.raises(ChannelError, match="not two certificates"):
        certificate_in(large)


def test_certificates_are_read_unverified_only_where_they_are_two() -> None:
    own, issuer = certificates_of(ALICE.chain)
    for chain in (own, issuer + own + own, b"", own[:100]):
        with pytest.raises(ChannelError):
            certificate_in(chain)
    with pytest.raises(ChannelError):
        certificate_in(issuer + own)  # an authority is no party


def test_two_signatures_of_one_submission_both_hold(submission: Submission) -> None:
    first, second = ALICE.signs(submission), ALICE.signs(submission)
    assert first.signature != second.signature
    assert check(first) == check(second)


def test_signing_takes_the_canonical_bytes(submission: Submission) -> None:
    party = Party(ALICE.key, ALICE.chain)
    assert sign(submission, party.key, party.chain).submission == submission.canonical
