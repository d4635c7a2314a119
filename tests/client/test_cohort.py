"""Who counts as a party of a round: what peers signed, and each thing that a coordinator might show instead."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from privet.client.cohort import MOST_KEPT, Peers
from privet.privacy.attendance import (
    COHORT_BYTES,
    MOST_PARTIES,
    Attendance,
    attend,
    decoded,
    encoded,
    statement,
)
from privet.privacy.budget.decisions import Cohort
from privet.privacy.channel.identities import Role
from privet.privacy.channel.member import Member, Membership
from privet.privacy.errors import ChannelError
from privet.privacy.submission import Submission
from signers import NOW, Authority, Party

Make = Callable[..., Submission]
AUTHORITY = Authority("test")
OWN = AUTHORITY.party("hospital", Role.NODE)
NORTH, SOUTH, WEST = (AUTHORITY.party(name, Role.NODE) for name in ("north", "south", "west"))


def member_of(party: Party, name: str = "hospital", authority: Authority = AUTHORITY) -> Member:
    membership = Membership(authority.federation, Role.NODE, name, "localhost:1", "localhost:2")
    return Member(Path(), membership, party.key, party.chain, authority.root_pem)


class Side:
    """One institution's view; pins and revoked keys are set by the test."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.pins: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.moment = NOW
        self.peers = Peers(member_of(OWN), lambda: self.pins, lambda key: key in self.revoked)

    def says(self, party: Party, submission: Submission | None = None) -> Attendance:
        return attend(submission or self.submission, party.key, party.chain)

    def cohort(self, *attendances: Attendance) -> Cohort:
        return self.peers.cohort(self.submission, encoded(attendances), self.moment)

    def counts(self, *attendances: Attendance) -> int:
        """The parties beside this node itself."""
        return self.cohort(*attendances).parties - 1


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    return make_submission(private=True)


@pytest.fixture
def side(submission: Submission) -> Side:
    return Side(submission)


def test_peers_that_signed_count_and_so_does_the_node_itself(side: Side) -> None:
    assert side.cohort(side.says(NORTH), side.says(SOUTH)) == Cohort(told=2, parties=3, are_pinned=False)
    assert side.cohort(side.says(OWN), side.says(NORTH), side.says(SOUTH)) == Cohort(3, 3, False)
    assert side.peers.trust == "coordinator trusted to name parties"


def test_server_that_lists_nobody(side: Side) -> None:
    assert side.peers.cohort(side.submission, b"", NOW) == Cohort(1, 1, False)
    assert side.cohort() == Cohort(1, 1, False)
    side.pins = {"north": NORTH.key.fingerprint}
    assert side.peers.cohort(side.submission, b"", NOW) == Cohort(1, 1, True)


def test_only_pinned_peers_count_where_any_is_pinned(side: Side) -> None:
    side.pins = {"north": NORTH.key.fingerprint, "east": WEST.key.fingerprint}
    told = (side.says(NORTH), side.says(SOUTH), side.says(WEST))  # a stranger, and a pinned key under another name
    assert side.cohort(*told) == Cohort(told=3, parties=2, are_pinned=True)
    assert side.peers.trust == "only parties pinned by the institution count: east, north"


def test_friendly_nodes_of_the_coordinator_do_not_count_against_pins(side: Side) -> None:
    """It holds the issuing authority: a certificate in a pinned name costs it nothing, the pinned key it has not."""
    side.pins = {name: AUTHORITY.party(name, Role.NODE).key.fingerprint for name in ("north", "south", "west")}
    minted = [AUTHORITY.party(f"friend-{n}", Role.NODE) for n in range(9)]
    minted += [AUTHORITY.party(name, Role.NODE) for name in side.pins]
    assert side.cohort(*map(side.says, minted)) == Cohort(told=12, parties=1, are_pinned=True)
    side.pins = {}
    assert side.counts(*map(side.says, minted)) == 12  # without pins it is the coordinator's word


def test_pins_are_read_at_each_round(side: Side) -> None:
    assert side.counts(side.says(NORTH), side.says(SOUTH)) == 2
    side.pins = {"north": NORTH.key.fingerprint}
    assert side.counts(side.says(NORTH), side.says(SOUTH)) == 1


def test_own_signature_counts_once_though_it_is_pinned(side: Side) -> None:
    side.pins = {"hospital": OWN.key.fingerprint}
    assert side.counts(side.says(OWN), side.says(OWN)) == 0


def test_the_same_signature_twice(side: Side) -> None:
    north = side.says(NORTH)
    assert side.cohort(north, north, side.says(NORTH)) == Cohort(told=3, parties=2, are_pinned=False)


def test_one_key_under_two_names_and_two_keys_under_one_name(side: Side) -> None:
    renamed = AUTHORITY.party("north-too", Role.NODE, key=NORTH.key)
    assert side.counts(side.says(NORTH), side.says(renamed)) == 1
    twin = AUTHORITY.party("north", Role.NODE)
    assert side.counts(side.says(NORTH), side.says(twin)) == 1
    assert side.counts(side.says(twin), side.says(renamed)) == 2  # two keys and two names are two
    assert side.counts(side.says(AUTHORITY.party("hospital", Role.NODE))) == 0  # another in this node's own name
    assert side.counts(side.says(AUTHORITY.party("other", Role.NODE, key=OWN.key))) == 0


def test_one_key_pinned_under_two_names(side: Side) -> None:
    side.pins = {"north": NORTH.key.fingerprint, "north-too": NORTH.key.fingerprint}
    renamed = AUTHORITY.party("north-too", Role.NODE, key=NORTH.key)
    assert side.counts(side.says(NORTH), side.says(renamed)) == 1


def test_signature_replayed_from_another_run_or_submission(side: Side, make_submission: Make) -> None:
    other_run = make_submission(private=True, run_id="run-2")
    other_plan = make_submission("run.seed=8", private=True)
    assert other_plan.run_id == side.submission.run_id
    for other in (other_run, other_plan):
        assert side.counts(side.says(NORTH, other)) == 0


def test_signature_of_another_purpose(side: Side) -> None:
    signature = NORTH.key.sign("submission", statement(side.submission))
    assert side.counts(Attendance.of_pem(signature, NORTH.chain)) == 0


def test_signature_by_another_key_than_the_certificates(side: Side) -> None:
    honest = side.says(NORTH)
    stolen = replace(side.says(SOUTH), certificate=honest.certificate)
    assert side.counts(stolen) == 0


def test_node_of_another_federation(side: Side) -> None:
    for authority in (Authority("other"), Authority("test")):  # of another name, and of the same name with another root
        stranger = authority.party("north", Role.NODE)
        assert side.counts(side.says(stranger)) == 0


def test_submission_of_another_federation(make_submission: Make) -> None:
    """Two federations under one root do not exist; a node that was shown such a submission counts nobody for it."""
    elsewhere = Authority("elsewhere")
    own, north = (elsewhere.party(name, Role.NODE) for name in ("hospital", "north"))
    peers = Peers(member_of(own, authority=elsewhere), dict, lambda key: False)
    submission = make_submission(private=True)  # of federation "test"
    told = encoded([attend(submission, north.key, north.chain)])
    assert peers.cohort(submission, told, NOW) == Cohort(1, 1, False)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR, Role.SERVER])
def test_certificate_that_is_no_nodes(side: Side, role: Role) -> None:
    assert side.counts(side.says(AUTHORITY.party("north", role))) == 0


def test_certificate_that_expired_before_the_submission_began(side: Side) -> None:
    past = NOW - timedelta(days=3)
    authority = Authority("test", past)
    submission_began = NOW - timedelta(days=1)
    peers = Peers(member_of(authority.party("hospital", Role.NODE), authority=authority), dict, lambda key: False)
    late, early = (
        authority.party(name, Role.NODE, at=at) for name, at in (("late", submission_began), ("early", past))
    )
    told = encoded([side.says(early), side.says(late)])
    assert peers.cohort(side.submission, told, NOW).parties == 2
    assert peers.cohort(side.submission, encoded([side.says(early)]), NOW).parties == 1


def test_certificate_of_tomorrow(side: Side) -> None:
    tomorrow = AUTHORITY.party("north", Role.NODE, at=NOW + timedelta(days=1))
    assert side.counts(side.says(tomorrow)) == 0
    side.moment = NOW + timedelta(days=1)
    assert side.counts(side.says(tomorrow)) == 1


def test_run_outlasts_the_day_of_a_certificate(side: Side, submission: Submission) -> None:
    """Also for a node that was started again meanwhile, and has checked nothing yet."""
    side.moment = NOW + timedelta(days=9)
    assert side.counts(side.says(NORTH)) == 1


def test_revoked_key_counts_no_longer_though_it_was_checked_before(side: Side) -> None:
    assert side.counts(side.says(NORTH), side.says(SOUTH)) == 2
    side.revoked.add(NORTH.key.fingerprint)
    assert side.counts(side.says(NORTH), side.says(SOUTH)) == 1


def test_ten_thousand_parties_are_refused_before_one_is_checked(side: Side) -> None:
    party = (2).to_bytes(2, "big") + b"no" + (2).to_bytes(2, "big") + b"no"
    content = b"\x01" + bytes(2) + (10_000).to_bytes(2, "big") + (bytes(2) + party) * 10_000
    with pytest.raises(ChannelError, match="10000 in a cohort, allowed are 4096"):
        side.peers.cohort(side.submission, content, NOW)


def test_server_leaves_out_what_would_not_be_read(side: Side) -> None:
    one = Attendance(b"s" * 72, b"c" * 600, b"i" * 441)
    assert len(decoded(encoded([one] * 10_000))) == MOST_PARTIES
    wide = [Attendance(b"s", b"c" * 2048, bytes([n % 256, n // 256]) * 1024) for n in range(2000)]
    told = encoded(wide)
    assert COHORT_BYTES - 4200 < len(told) <= COHORT_BYTES
    assert decoded(told) == wide[: len(decoded(told))]


def test_party_takes_the_bytes_that_are_stated(side: Side) -> None:
    parties = [AUTHORITY.party(f"institution-{n}", Role.NODE) for n in range(20)]
    attendances = [side.says(party) for party in parties]
    each = (len(encoded(attendances)) - len(encoded(attendances[:1]))) / 19
    assert 535 < each < 560


@pytest.mark.parametrize(
    "content", [b"", b"\x02", b"\x01", b"\x01\0", b"\x01\0\0\0", b"\x01\0\0\0\0more", b"{}", b"\xff" * 99]
)
def test_bytes_that_are_no_cohort(side: Side, content: bytes) -> None:
    if content:
        with pytest.raises(ChannelError):
            side.peers.cohort(side.submission, content, NOW)
    with pytest.raises(ChannelError):
        decoded(content)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # the library tells, and reads on
@given(st.binary(max_size=40), st.integers(0, 2000), st.booleans())
def test_cohort_that_was_altered_is_refused_or_counts_no_more(
    make_submission: Make, content: bytes, place: int, is_cut: bool
) -> None:
    side = Side(make_submission(private=True))
    whole = encoded([side.says(NORTH), side.says(SOUTH)])
    at = place % len(whole)
    altered = whole[:at] if is_cut else whole[:at] + content + whole[at + len(content) :]
    try:
        found = side.peers.cohort(side.submission, altered, NOW)
    except ChannelError:
        return
    assert 1 <= found.parties <= 3
    assert found.parties < 3 or altered == whole


def test_certificate_of_an_unknown_version_counts_for_nothing(side: Side) -> None:
    """The library raises what is no ValueError for it."""
    honest = side.says(NORTH)
    der = bytearray(honest.certificate)
    der[der.index(b"\xa0\x03\x02\x01\x02") + 4] = 5
    assert side.counts(replace(honest, certificate=bytes(der)), side.says(SOUTH)) == 1


@pytest.mark.parametrize("part", ["signature", "certificate", "issuer"])
def test_garbage_in_one_party_leaves_the_others(side: Side, part: str) -> None:
    broken = replace(side.says(NORTH), **{part: b"\x30\x82\xff\xff"})
    assert side.counts(broken, side.says(SOUTH)) == 1


def test_chain_of_one_or_three_certificates_is_not_brought(side: Side) -> None:
    signature = side.says(NORTH).signature
    leaf = x509.load_pem_x509_certificates(NORTH.chain)[0].public_bytes(Encoding.PEM)
    for chain in (leaf, NORTH.chain + leaf, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ChannelError):
            Attendance.of_pem(signature, chain)
    with pytest.raises(ChannelError):
        Attendance.of_pem(b"", NORTH.chain)


def test_what_is_kept_has_a_limit(side: Side, make_submission: Make) -> None:
    """A server may name a new run, and new parties, at every request."""
    for number in range(MOST_KEPT + 3):
        other = make_submission(private=True, run_id=f"run-{number}")
        told = encoded([side.says(NORTH, other)])
        assert side.peers.cohort(other, told, NOW).parties == 2
    assert len(side.peers._kept) == MOST_KEPT
    kept = side.peers._kept_of(side.submission)
    kept |= {number.to_bytes(32, "big"): None for number in range(MOST_PARTIES)}  # type: ignore[misc]
    assert side.counts(side.says(NORTH)) == 1
    assert len(kept) == 1
