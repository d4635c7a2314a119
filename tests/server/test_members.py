"""Members and invitations in a real database: tokens once, node ids for ever, a deny-list that all processes see."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from parties import Federation, TestClock, head_of, make_federation
from privet.privacy.channel.credentials import Peer
from privet.privacy.channel.identities import Certificate, Identity, IdentityKey, Role
from privet.privacy.channel.token import SECRET_BYTES
from privet.privacy.errors import ChannelError, EnrolmentError, PrivetError
from privet.server.database import open_database
from privet.server.members import Members, Standing


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path / "coordinator")


def joined(
    federation: Federation, name: str, role: Role = Role.NODE, key: IdentityKey | None = None, **how: bool
) -> Peer:
    """A new member, as a connection would show it."""
    token = federation.token(name, role, **how)
    return peer_in(federation.registrar.join(token.secret, (key or IdentityKey.generate()).csr()))


def peer_in(chain: bytes) -> Peer:
    said = Certificate.of_der(head_of(chain))
    return Peer(said.identity, said.serial, said.key_fingerprint, said.not_before, said.not_after, "TLSv1.3")


def now() -> float:
    return datetime.now(UTC).timestamp()


def test_member_in_good_standing(federation: Federation) -> None:
    federation.members.check(joined(federation, "st-marys"), now())


def test_node_ids_begin_at_2_and_stay(federation: Federation) -> None:
    members = federation.members
    for name in ("st-marys", "st-annes", "st-lukes"):
        joined(federation, name)
    numbers = {name: members.node_id(name) for name in ("st-marys", "st-annes", "st-lukes")}
    assert min(numbers.values()) >= 2
    assert len(set(numbers.values())) == 3
    members.revoke("st-annes", "a test", datetime.now(UTC))
    joined(federation, "st-johns")
    joined(federation, "st-annes")
    assert {name: members.node_id(name) for name in numbers} == numbers
    assert members.node_id("st-johns") not in numbers.values()


def test_operator_has_no_node_id(federation: Federation) -> None:
    joined(federation, "alice", Role.OPERATOR)
    with pytest.raises(ChannelError, match="not a node"):
        federation.members.node_id("alice")


def test_reused_token(federation: Federation) -> None:
    token = federation.token("st-marys")
    federation.registrar.join(token.secret, IdentityKey.generate().csr())
    with pytest.raises(EnrolmentError, match="used by another key"):
        federation.registrar.join(token.secret, IdentityKey.generate().csr())


def test_lost_reply_repeated_with_the_same_key(federation: Federation) -> None:
    token, key = federation.token("st-marys"), IdentityKey.generate()
    first, second = (peer_in(federation.registrar.join(token.secret, key.csr())) for _ in range(2))
    assert first.serial != second.serial
    for peer in (first, second):
        federation.members.check(peer, now())


def test_lost_reply_repeated_after_the_tokens_end(federation: Federation) -> None:
    token, key = federation.token("st-marys"), IdentityKey.generate()
    federation.registrar.join(token.secret, key.csr())
    federation.clock.shift = timedelta(hours=24, seconds=1)
    with pytest.raises(EnrolmentError, match="is expired"):
        federation.registrar.join(token.secret, key.csr())


def test_expired_token(federation: Federation) -> None:
    token = federation.token("st-marys", valid=timedelta(hours=2))
    federation.clock.shift = timedelta(hours=2, seconds=1)
    with pytest.raises(EnrolmentError, match="is expired"):
        federation.registrar.join(token.secret, IdentityKey.generate().csr())
    assert federation.members.all() == ()


@pytest.mark.parametrize("secret", [b"", bytes(SECRET_BYTES), bytes(SECRET_BYTES + 1), b"x" * 10_000])
def test_secret_that_no_token_holds(federation: Federation, secret: bytes) -> None:
    federation.token("st-marys")
    with pytest.raises(EnrolmentError):
        federation.registrar.join(secret, IdentityKey.generate().csr())
    assert federation.members.all() == ()


def test_two_joins_race_for_one_token(federation: Federation) -> None:
    """Of eight keys at the same moment exactly one is let in."""
    token, start, outcomes = federation.token("st-marys"), threading.Barrier(8), list[str]()

    def attempt() -> None:
        key = IdentityKey.generate()
        start.wait()
        try:
            federation.registrar.join(token.secret, key.csr())
            outcomes.append(key.fingerprint)
        except PrivetError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (member,) = federation.members.all()
    assert outcomes.count(member.key_fingerprint) == 1
    assert sum("used by another key" in outcome for outcome in outcomes) == 7


def test_joins_race_for_node_ids(federation: Federation) -> None:
    tokens, start, failures = [federation.token(f"node-{n}") for n in range(8)], threading.Barrier(8), list[Exception]()

    def attempt(secret: bytes) -> None:
        csr = IdentityKey.generate().csr()
        start.wait()
        try:
            federation.registrar.join(secret, csr)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt, args=(token.secret,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len({member.node_id for member in federation.members.all()}) == 8


def test_second_invitation_takes_the_place_of_the_first(federation: Federation) -> None:
    first, second = federation.token("st-marys"), federation.token("st-marys")
    with pytest.raises(EnrolmentError, match="no token with this secret"):
        federation.registrar.join(first.secret, IdentityKey.generate().csr())
    federation.registrar.join(second.secret, IdentityKey.generate().csr())


def test_member_is_not_invited_again_by_mistake(federation: Federation) -> None:
    joined(federation, "st-marys")
    with pytest.raises(EnrolmentError, match="is a member already") as caught:
        federation.token("st-marys")
    assert "--replace" in caught.value.remedy


def test_name_of_an_operator_is_no_name_for_a_node(federation: Federation) -> None:
    joined(federation, "alice", Role.OPERATOR)
    with pytest.raises(EnrolmentError, match="known here as operator"):
        federation.token("alice", Role.NODE, replaces=True)


def test_old_key_ends_when_the_new_one_joins(federation: Federation) -> None:
    old = joined(federation, "st-marys")
    token = federation.token("st-marys", replaces=True)
    federation.members.check(old, now())  # an invitation alone changes nothing
    new = peer_in(federation.registrar.join(token.secret, IdentityKey.generate().csr()))
    federation.members.check(new, now())
    with pytest.raises(ChannelError, match="was revoked"):
        federation.members.check(old, now())


def test_renewal_does_not_outlive_a_replacement(federation: Federation) -> None:
    """The old key asked before the new one joined; its certificate, for a third key, comes after."""
    old = joined(federation, "st-marys")
    third = federation.home.issuing().issue(old.identity, IdentityKey.generate().csr(), federation.clock())
    new = joined(federation, "st-marys", replaces=True)
    with pytest.raises(EnrolmentError, match="a key that was revoked"):
        federation.members.record(Certificate.of_der(head_of(third)), federation.clock(), old.key_fingerprint)
    with pytest.raises(ChannelError, match="not known here"):
        federation.members.check(peer_in(third), now())
    federation.members.check(new, now())


@pytest.mark.parametrize("standing", [Standing.REVOKED, Standing.LEFT])
def test_renewal_does_not_outlive_a_membership(federation: Federation, standing: Standing) -> None:
    old = joined(federation, "st-marys")
    third = federation.home.issuing().issue(old.identity, IdentityKey.generate().csr(), federation.clock())
    federation.members.revoke("st-marys", "a test", federation.clock(), standing)
    with pytest.raises(EnrolmentError, match="not a member any longer"):
        federation.members.record(Certificate.of_der(head_of(third)), federation.clock(), old.key_fingerprint)
    (member,) = federation.members.all()
    assert member.key_fingerprint == old.key_fingerprint


def test_revoked_key_never_comes_back(federation: Federation) -> None:
    key = IdentityKey.generate()
    joined(federation, "st-marys", key=key)
    federation.members.revoke("st-marys", "key lost", federation.clock())
    with pytest.raises(EnrolmentError, match="key that was revoked"):
        joined(federation, "st-marys", key=key)
    with pytest.raises(EnrolmentError, match="key that was revoked"):
        joined(federation, "another-name", key=key)
    assert [one.name for one in federation.members.all()] == ["st-marys"]  # the attempt made no member


def test_key_of_another_member(federation: Federation) -> None:
    key = IdentityKey.generate()
    joined(federation, "st-marys", key=key)
    with pytest.raises(EnrolmentError, match="key of another member"):
        joined(federation, "st-annes", key=key)


def test_revoking_one_touches_no_other(federation: Federation) -> None:
    gone, stays = joined(federation, "st-marys"), joined(federation, "st-annes")
    before = federation.members.revision()
    federation.members.revoke("st-marys", "contract ended", federation.clock())
    federation.members.check(stays, now())
    with pytest.raises(ChannelError, match="revoked: contract ended"):
        federation.members.check(gone, now())
    assert federation.members.denied_keys() == {gone.key_fingerprint}
    assert federation.members.revision() != before


def test_revocation_takes_the_open_token_too(federation: Federation) -> None:
    token = federation.token("st-marys")
    federation.members.revoke("st-marys", "a mistake", federation.clock())
    with pytest.raises(EnrolmentError):
        federation.registrar.join(token.secret, IdentityKey.generate().csr())


def test_lost_reply_is_no_way_round_a_revocation(federation: Federation) -> None:
    token, key = federation.token("st-marys"), IdentityKey.generate()
    federation.registrar.join(token.secret, key.csr())
    federation.members.revoke("st-marys", "a test", federation.clock())
    with pytest.raises(EnrolmentError):
        federation.registrar.join(token.secret, key.csr())


def test_revocation_is_seen_by_another_process(federation: Federation) -> None:
    """`privet revoke` writes, the server looks: another connection to the same file."""
    peer = joined(federation, "st-marys")
    other = Members(open_database(federation.home.database))
    before = other.revision()
    federation.members.revoke("st-marys", "a test", federation.clock())
    assert other.revision() != before
    with pytest.raises(ChannelError):
        other.check(peer, now())


def test_one_certificate_is_denied_by_its_serial(federation: Federation) -> None:
    token, key = federation.token("st-marys"), IdentityKey.generate()
    chains = [federation.registrar.join(token.secret, key.csr()) for _ in range(2)]
    first, second = (peer_in(chain) for chain in chains)
    federation.members.revoke_certificate(Certificate.of_der(head_of(chains[0])), "a test", federation.clock())
    with pytest.raises(ChannelError, match="the serial of"):
        federation.members.check(first, now())
    federation.members.check(second, now())


def test_certificate_that_the_issuers_key_made_behind_the_servers_back(federation: Federation) -> None:
    joined(federation, "st-marys")
    forged = federation.home.issuing().issue(
        Identity("hearts", Role.NODE, "st-marys"), IdentityKey.generate().csr(), federation.clock()
    )
    with pytest.raises(ChannelError, match="key that is not known"):
        federation.members.check(peer_in(forged), now())


def test_key_of_one_member_under_the_name_of_another(federation: Federation) -> None:
    key = IdentityKey.generate()
    joined(federation, "st-marys", key=key)
    joined(federation, "st-annes")
    forged = federation.home.issuing().issue(Identity("hearts", Role.NODE, "st-annes"), key.csr(), federation.clock())
    with pytest.raises(ChannelError, match="key that is not known"):
        federation.members.check(peer_in(forged), now())


@pytest.mark.parametrize(("role", "name"), [(Role.NODE, "nobody"), (Role.OPERATOR, "st-marys")])
def test_stranger(federation: Federation, role: Role, name: str) -> None:
    key = IdentityKey.generate()
    joined(federation, "st-marys", key=key)
    forged = federation.home.issuing().issue(Identity("hearts", role, name), key.csr(), federation.clock())
    with pytest.raises(ChannelError, match="is not a member"):
        federation.members.check(peer_in(forged), now())


def test_expired_certificate_is_not_in_good_standing(federation: Federation) -> None:
    peer = joined(federation, "st-marys")
    federation.members.check(peer, peer.not_after.timestamp())
    with pytest.raises(ChannelError, match="expired"):
        federation.members.check(peer, peer.not_after.timestamp() + 1)


def test_stranger_cannot_be_revoked(federation: Federation) -> None:
    with pytest.raises(EnrolmentError, match="nobody is not a member"):
        federation.members.revoke("nobody", "a test", federation.clock())


def test_member_list_says_what_became_of_each(federation: Federation) -> None:
    joined(federation, "st-marys")
    peer = joined(federation, "alice", Role.OPERATOR)
    federation.token("st-annes")
    federation.members.revoke("st-marys", "contract ended", federation.clock())
    alice, marys = federation.members.all()
    assert (alice.name, alice.standing, alice.key_fingerprint) == ("alice", Standing.MEMBER, peer.key_fingerprint)
    assert alice.node_id is None
    assert alice.not_after == peer.not_after
    assert (marys.standing, marys.because) == (Standing.REVOKED, "contract ended")
    assert [name for name, _, _ in federation.members.open_invitations(federation.clock())] == ["st-annes"]


def test_database_holds_no_secret(federation: Federation) -> None:
    token = federation.token("st-marys")
    for path in federation.home.folder.iterdir():
        content = path.read_bytes()
        assert token.secret not in content
        assert token.secret.hex().encode() not in content


def test_certificates_are_forgotten_long_after_their_end(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, clock=TestClock(timedelta(days=-90)))
    token, key = federation.token("st-marys", valid=timedelta(days=30)), IdentityKey.generate()
    first = peer_in(federation.registrar.join(token.secret, key.csr()))
    federation.clock.shift = timedelta(days=-62)
    second = federation.registrar.join(token.secret, key.csr())
    federation.clock.shift = timedelta()
    fresh = federation.home.issuing().issue(first.identity, key.csr(), federation.clock())
    federation.members.record(Certificate.of_der(head_of(fresh)), federation.clock(), first.key_fingerprint)
    with open_database(federation.home.database).connect() as connection:
        serials = set(connection.exec_driver_sql("SELECT serial FROM certificates").scalars())
    assert serials == {peer_in(fresh).serial}
    assert peer_in(second).serial not in serials


@pytest.mark.parametrize("hours", [0.0, -1.0, 24 * 31])
def test_token_that_would_be_valid_for_no_time_or_too_long(federation: Federation, hours: float) -> None:
    with pytest.raises(EnrolmentError, match="--valid"):
        federation.token("st-marys", valid=timedelta(hours=hours))


def test_secret_of_one_member_is_not_anothers(federation: Federation) -> None:
    tokens = {name: federation.token(name) for name in ("st-marys", "st-annes")}
    for name, token in tokens.items():
        chain = federation.registrar.join(token.secret, IdentityKey.generate().csr())
        assert peer_in(chain).identity.name == name


def test_database_that_cannot_be_asked(federation: Federation) -> None:
    """Whoever looks at the deny-list four times a second must learn it as an error that it knows."""
    peer = joined(federation, "st-marys")
    with open_database(federation.home.database).begin() as connection:
        connection.exec_driver_sql("DROP TABLE revocations")
    for ask in (
        federation.members.revision,
        federation.members.denied_keys,
        lambda: federation.members.check(peer, now()),
        lambda: federation.members.revoke("st-marys", "a test", federation.clock()),
    ):
        with pytest.raises(ChannelError, match="the database cannot be asked"):
            ask()
