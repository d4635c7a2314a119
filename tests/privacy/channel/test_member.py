"""A member's folder: whole or not there, and of one party."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from parties import Federation, make_federation
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.channel.member import IDENTITY, Member, Membership, has_joined
from privet.privacy.errors import ChannelError, EnrolmentError


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path / "coordinator")


def test_member_is_read_as_it_was_written(federation: Federation, tmp_path: Path) -> None:
    made = federation.member("st-marys", tmp_path)
    found = Member.load(tmp_path / IDENTITY)
    assert (found.identity, found.certificate) == (made.identity, made.certificate)
    assert (found.address, found.enrolment_address) == (made.address, made.enrolment_address)
    assert (tmp_path / IDENTITY / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / IDENTITY).stat().st_mode & 0o777 == 0o700


def test_renewal_is_due_at_two_thirds(federation: Federation, tmp_path: Path) -> None:
    member = federation.member("st-marys", tmp_path)
    begin, end = member.certificate.not_before, member.certificate.not_after
    assert not member.is_renewal_due(begin + (end - begin) * 0.66)
    assert member.is_renewal_due(begin + (end - begin) * 0.67)
    assert not member.is_expired(end)
    assert member.is_expired(end + timedelta(seconds=1))


def test_folder_where_nobody_joined(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="nobody has joined"):
        Member.load(tmp_path)


def test_key_without_a_membership_is_no_member(tmp_path: Path) -> None:
    """An attempt that was cut short."""
    IdentityKey.generate().save(tmp_path / "key.pem")
    assert not has_joined(tmp_path)


def test_key_of_another_party(federation: Federation, tmp_path: Path) -> None:
    federation.member("st-marys", tmp_path)
    IdentityKey.generate().save(tmp_path / IDENTITY / "key.pem")
    with pytest.raises(ChannelError, match="not of one party"):
        Member.load(tmp_path / IDENTITY)


def test_membership_of_another_party(federation: Federation, tmp_path: Path) -> None:
    federation.member("st-marys", tmp_path)
    path = tmp_path / IDENTITY / "membership.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"name": "st-annes"}))
    with pytest.raises(ChannelError, match="not of one party"):
        Member.load(tmp_path / IDENTITY)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"role": "node"}', '{"role": "king"}', '{"role": 3}', "\x00"])
def test_membership_that_is_none(federation: Federation, tmp_path: Path, content: str) -> None:
    federation.member("st-marys", tmp_path)
    (tmp_path / IDENTITY / "membership.json").write_text(content)
    with pytest.raises(ChannelError, match="not a membership"):
        Member.load(tmp_path / IDENTITY)


@pytest.mark.parametrize("name", ["chain.pem", "root.pem", "key.pem"])
def test_folder_that_lacks_a_file(federation: Federation, tmp_path: Path, name: str) -> None:
    federation.member("st-marys", tmp_path)
    (tmp_path / IDENTITY / name).unlink()
    with pytest.raises(ChannelError, match="cannot be read"):
        Member.load(tmp_path / IDENTITY)


@pytest.mark.parametrize("content", [b"", b"no chain", b"x" * (1 << 17)])
def test_chain_that_is_none(federation: Federation, tmp_path: Path, content: bytes) -> None:
    federation.member("st-marys", tmp_path)
    (tmp_path / IDENTITY / "chain.pem").write_bytes(content)
    with pytest.raises(ChannelError):
        Member.load(tmp_path / IDENTITY)


def test_member_is_not_made_with_the_root_of_another_federation(federation: Federation, tmp_path: Path) -> None:
    other = make_federation(tmp_path / "other")
    made = federation.member("st-marys", tmp_path / "m")
    membership = Membership("hearts", Role.NODE, "st-marys", made.address, made.enrolment_address)
    with pytest.raises(ChannelError):
        Member.create(tmp_path / "n", membership, made.key, made.chain, other.home.root, federation.clock())
    assert not (tmp_path / "n").exists()


def test_member_is_not_made_with_another_role_than_it_was_invited_for(federation: Federation, tmp_path: Path) -> None:
    made = federation.member("st-marys", tmp_path / "m")
    membership = Membership("hearts", Role.OPERATOR, "st-marys", made.address, made.enrolment_address)
    with pytest.raises(ChannelError, match="not of role operator"):
        Member.create(tmp_path / "n", membership, made.key, made.chain, federation.home.root, federation.clock())
    assert not (tmp_path / "n").exists()
