"""Who belongs to the federation: invitations, members, their certificates, and what was revoked.

The rules:
1. A member's name is unique among all roles, and its node id stays its own for ever, whatever joins or leaves.
2. An invitation holds SHA-256 of its secret. It is redeemed in one UPDATE, once; the key that redeemed it may ask again
   until it expires, because its answer may have been lost.
3. What is denied is a key or a serial, and stays denied. A member that is invited again comes with another key.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import Engine, Float, ForeignKey, String, delete, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..privacy.channel.credentials import Peer
from ..privacy.channel.identities import Certificate, Role
from ..privacy.channel.token import secret_hash
from ..privacy.errors import ChannelError, EnrolmentError
from .database import Base, reading, writing

FIRST_NODE_ID = 2  # Flower keeps the numbers below for itself
REMEMBERED = timedelta(days=60)  # a certificate's record after its end: longer than the way back is open
_JOIN = "ask the coordinator for a new invitation"


class Standing(StrEnum):
    """How a member stands."""

    MEMBER = "member"
    REVOKED = "revoked"
    LEFT = "left"


class _Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    standing: Mapped[str] = mapped_column(String(16))
    joined: Mapped[float] = mapped_column(Float)
    because: Mapped[str] = mapped_column(String, default="")
    __table_args__ = ({"sqlite_autoincrement": True},)


class _Invitation(Base):
    __tablename__ = "invitations"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    secret_hash: Mapped[str] = mapped_column(String(64))
    expires: Mapped[float] = mapped_column(Float)
    redeemed_by: Mapped[str | None] = mapped_column(String(64))  # a key's fingerprint


class _Certificate(Base):
    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(ForeignKey("members.name"), index=True)
    key_fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    not_after: Mapped[float] = mapped_column(Float)


class _Revocation(Base):
    __tablename__ = "revocations"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(8))  # key or serial
    value: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(63))
    because: Mapped[str] = mapped_column(String)
    at: Mapped[float] = mapped_column(Float)


_ENDED = {Standing.REVOKED: "been revoked", Standing.LEFT: "left the federation"}


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A member as the server knows it. `node_id` is of nodes only; the certificate's two fields are of the newest."""

    name: str
    role: Role
    node_id: int | None
    standing: Standing
    joined: datetime
    because: str
    key_fingerprint: str
    not_after: datetime | None


class Members:
    """The members of a federation, in the server's database. Every method is one transaction.

    Each raises DatabaseError where the database cannot be asked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def invite(self, name: str, role: Role, secret: bytes, expires: datetime, replaces: bool = False) -> None:
        """Keep an invitation, in place of an open one for the same name; raise EnrolmentError where it cannot be."""
        with writing(self._engine) as session:
            member = session.scalar(select(_Member).where(_Member.name == name))
            if member is not None and member.role != role:
                raise EnrolmentError(f"{name} is known here as {member.role}", "give another name")
            if member is not None and member.standing == Standing.MEMBER and not replaces:
                raise EnrolmentError(
                    f"{name} is a member already",
                    f"privet invite {name} --replace, where its key was lost: the old one ends when the new one joins",
                )
            session.execute(delete(_Invitation).where(_Invitation.name == name))
            session.add(_Invitation(name=name, role=role, secret_hash=secret_hash(secret), expires=expires.timestamp()))

    def redeem(self, secret: bytes, key_fingerprint: str, now: datetime) -> tuple[str, Role]:
        """Make whoever holds the secret a member with this key, once; its name and role come from the invitation.

        Raises EnrolmentError with the reason, which is for the server's log alone.
        """
        with writing(self._engine) as session:
            invitation = _invitation(session, secret)
            self._check_key(session, key_fingerprint, invitation.name)
            is_first = invitation.redeemed_by is None
            # One statement decides a race of two keys for one token.
            taken = session.execute(
                update(_Invitation)
                .where(_Invitation.id == invitation.id, _Invitation.expires > now.timestamp())
                .where((_Invitation.redeemed_by == None) | (_Invitation.redeemed_by == key_fingerprint))  # noqa: E711
                .values(redeemed_by=key_fingerprint)
            )
            if taken.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
                word = "expired" if invitation.expires <= now.timestamp() else "used by another key"
                raise EnrolmentError(f"the token of {invitation.name} is {word}", _JOIN)
            if is_first:
                _admit(session, invitation, key_fingerprint, now)
            return invitation.name, Role(invitation.role)

    def record(self, certificate: Certificate, now: datetime, by: str) -> None:
        """Remember a certificate that was issued; with it its key is known as the member's.

        `by`: the fingerprint of the key that asked for it. Raises EnrolmentError where that key was revoked or the
        membership ended meanwhile: nothing is certified for one whom another key has replaced.
        """
        name, not_after = certificate.identity.name, certificate.not_after.timestamp()
        with writing(self._engine) as session:
            standing = session.scalar(select(_Member.standing).where(_Member.name == name))
            if standing != Standing.MEMBER:
                raise EnrolmentError(f"{name} is not a member any longer", _JOIN)
            for key_fingerprint in sorted({by, certificate.key_fingerprint}):
                self._check_key(session, key_fingerprint, name)
            forgotten = (now - REMEMBERED).timestamp()
            session.execute(delete(_Certificate).where(_Certificate.not_after < forgotten))
            session.add(
                _Certificate(
                    serial=certificate.serial,
                    name=name,
                    key_fingerprint=certificate.key_fingerprint,
                    not_after=not_after,
                )
            )

    def check(self, peer: Peer, now: float) -> None:
        """Raise ChannelError, with the reason, unless the peer is a member in good standing `now` (Unix seconds)."""
        if now > peer.not_after.timestamp():
            raise ChannelError(
                f"the certificate of {peer.identity.uri} expired on {peer.not_after:%Y-%m-%d %H:%M}", _JOIN
            )
        self.check_standing(peer)

    def check_standing(self, certificate: Peer | Certificate) -> None:
        """Raise ChannelError unless a certificate, expired or not, is a member's that nobody has revoked."""
        identity = certificate.identity
        kind = (
            select(_Revocation.kind)
            .where(_Revocation.value.in_([certificate.serial, certificate.key_fingerprint]))
            .limit(1)
            .scalar_subquery()
        )
        known = (
            select(_Certificate.serial)
            .where(_Certificate.name == identity.name, _Certificate.key_fingerprint == certificate.key_fingerprint)
            .limit(1)
            .scalar_subquery()
        )
        asked = select(_Member.role, _Member.standing, _Member.because, kind, known).where(
            _Member.name == identity.name
        )
        with reading(self._engine) as session:  # one statement: it is asked for every call and every stream
            found = session.execute(asked).one_or_none()
        if found is None or found[0] != identity.role:
            raise ChannelError(f"{identity.uri} is not a member", _JOIN)
        _, standing, because, revoked, serial = found
        if standing != Standing.MEMBER:
            raise ChannelError(f"{identity.uri} has {_ENDED[Standing(standing)]}: {because}", _JOIN)
        if revoked is not None:
            raise ChannelError(f"the {revoked} of {identity.uri} was revoked", _JOIN)
        if serial is None:
            raise ChannelError(f"{identity.uri} has a key that is not known here", _JOIN)

    def node_id(self, name: str) -> int:
        """The number that Flower's interfaces call a node by: 2 or more, one name's for ever."""
        with reading(self._engine) as session:
            number = session.scalar(select(_Member.id).where(_Member.name == name, _Member.role == Role.NODE))
        if number is None:
            raise ChannelError(f"{name} is not a node of this federation", _JOIN)
        return _node_id(number)

    def key_of(self, name: str) -> str:
        """The fingerprint of a member's newest key; empty for one that is not known."""
        newest = select(_Certificate.key_fingerprint).where(_Certificate.name == name)
        with reading(self._engine) as session:
            return session.scalar(newest.order_by(_Certificate.not_after.desc()).limit(1)) or ""

    def denied_keys(self) -> frozenset[str]:
        """The fingerprints of every key that was revoked."""
        with reading(self._engine) as session:
            return frozenset(session.scalars(select(_Revocation.value).where(_Revocation.kind == "key")))

    def revision(self) -> int:
        """A number that changes whenever something was revoked, by any process: rows are added, never removed."""
        with reading(self._engine) as session:
            return session.scalar(select(func.count()).select_from(_Revocation)) or 0

    def revoke(self, name: str, because: str, now: datetime, standing: Standing = Standing.REVOKED) -> None:
        """End a membership: its keys are denied, its open invitation is gone. Nobody else is touched."""
        with writing(self._engine) as session:
            withdrawn = session.execute(delete(_Invitation).where(_Invitation.name == name)).rowcount  # type: ignore[attr-defined]
            member = session.scalar(select(_Member).where(_Member.name == name))
            if member is None and not withdrawn:
                raise EnrolmentError(f"{name} is not a member", "privet federation members")
            if member is not None:
                member.standing, member.because = standing, because
                _deny(session, name, _keys(session, name), because, now)

    def revoke_certificate(self, certificate: Certificate, because: str, now: datetime) -> None:
        """Deny one certificate by its serial; the member may renew with the key that it has."""
        with writing(self._engine) as session:
            _deny(session, certificate.identity.name, [certificate.serial], because, now, kind="serial")

    def all(self) -> tuple[MemberRecord, ...]:
        """Every member that there is or was, by name."""
        with reading(self._engine) as session:
            return tuple(_record(session, member) for member in session.scalars(select(_Member).order_by(_Member.name)))

    def open_invitations(self, now: datetime) -> tuple[tuple[str, Role, datetime], ...]:
        """Name, role and end of every invitation that nobody has used yet."""
        wanted = select(_Invitation).where(_Invitation.redeemed_by.is_(None), _Invitation.expires > now.timestamp())
        with reading(self._engine) as session:
            found = session.scalars(wanted.order_by(_Invitation.name))
            return tuple((one.name, Role(one.role), _moment(one.expires)) for one in found)

    def _check_key(self, session: Session, key_fingerprint: str, name: str) -> None:
        """A denied key stays denied, and one key is one member's: institutions pin keys, not names."""
        if session.scalar(select(_Revocation.id).where(_Revocation.value == key_fingerprint).limit(1)) is not None:
            raise EnrolmentError(f"{name} asks with a key that was revoked", "make a new key")
        others = select(_Certificate.name).where(
            _Certificate.key_fingerprint == key_fingerprint, _Certificate.name != name
        )
        if session.scalar(others.limit(1)) is not None:
            raise EnrolmentError(f"{name} asks with the key of another member", "make a new key")


def _invitation(session: Session, secret: bytes) -> _Invitation:
    """The invitation with this secret; every one is compared, in constant time, so that timing tells nothing."""
    wanted, found = secret_hash(secret).encode(), None
    for invitation in session.scalars(select(_Invitation)):
        if hmac.compare_digest(invitation.secret_hash.encode(), wanted):
            found = invitation
    if found is None:
        raise EnrolmentError("no token with this secret is open", _JOIN)
    return found


def _admit(session: Session, invitation: _Invitation, key_fingerprint: str, now: datetime) -> None:
    member = session.scalar(select(_Member).where(_Member.name == invitation.name))
    if member is None:
        member = _Member(name=invitation.name, role=invitation.role, joined=now.timestamp(), because="")
        session.add(member)
    member.standing, member.because = Standing.MEMBER, ""
    former = _keys(session, invitation.name) - {key_fingerprint}
    _deny(session, invitation.name, former, "replaced by a new key", now)


def _keys(session: Session, name: str) -> set[str]:
    return set(session.scalars(select(_Certificate.key_fingerprint).where(_Certificate.name == name)))


def _deny(session: Session, name: str, values: Iterable[str], because: str, now: datetime, kind: str = "key") -> None:
    known = set(session.scalars(select(_Revocation.value).where(_Revocation.name == name)))
    for value in sorted(set(values) - known):
        session.add(_Revocation(kind=kind, value=value, name=name, because=because, at=now.timestamp()))


def _record(session: Session, member: _Member) -> MemberRecord:
    newest = session.scalar(
        select(_Certificate).where(_Certificate.name == member.name).order_by(_Certificate.not_after.desc()).limit(1)
    )
    return MemberRecord(
        member.name,
        Role(member.role),
        _node_id(member.id) if member.role == Role.NODE else None,
        Standing(member.standing),
        _moment(member.joined),
        member.because,
        newest.key_fingerprint if newest else "",
        _moment(newest.not_after) if newest else None,
    )


def _node_id(number: int) -> int:
    return number + FIRST_NODE_ID - 1


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
