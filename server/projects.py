"""Projects: which operators and which nodes belong together. A run names its project in its plan; policies speak of it.

The rules:
1. A project groups names of members. Whoever is revoked is refused before any project is looked at (gate.py).
2. A run of a project that was removed stays that project's: nobody belongs to it until it is made again.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, ForeignKey, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..privacy.channel.identities import Role
from ..privacy.errors import UsageError
from .database import Base, reading, writing

_NAME = 64


class _Project(Base):
    __tablename__ = "projects"
    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    created: Mapped[str] = mapped_column(String(_NAME))


class _Belonging(Base):
    __tablename__ = "project_members"
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"), primary_key=True)
    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


@dataclass(frozen=True, slots=True)
class Project:
    """A project, and who belongs to it, in order of name. `created`: UTC."""

    name: str
    created: str
    operators: tuple[str, ...]
    nodes: tuple[str, ...]


class Projects:
    """The projects of a federation, in the server's database. Every method is one transaction.

    Each raises DatabaseError where the database cannot be asked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, now: datetime, operators: Iterable[str] = (), nodes: Iterable[str] = ()) -> Project:
        """The project with these members, made where there was none. Names are unique among all roles (members.py)."""
        wanted = dict.fromkeys(operators, Role.OPERATOR) | dict.fromkeys(nodes, Role.NODE)
        with writing(self._engine) as session:
            if session.get(_Project, name) is None:
                session.add(_Project(name=name, created=now.isoformat(timespec="seconds")))
                session.flush()
            known = {one.name for one in _belonging(session, name)}
            session.add_all(
                _Belonging(project=name, name=member, role=role)
                for member, role in wanted.items()
                if member not in known
            )
            session.flush()
            return _told(session, name)

    def remove_members(self, name: str, members: Iterable[str]) -> Project:
        """The project without these; raise UsageError where there is no such project, or one of them is not in it."""
        with writing(self._engine) as session:
            self._check(session, name)
            known = {one.name for one in _belonging(session, name)}
            for member in members:
                if member not in known:
                    raise UsageError(
                        f"{member} is not in project {name}{_hint(member, known)}", "privet federation project list"
                    )
                session.execute(delete(_Belonging).where(_Belonging.project == name, _Belonging.name == member))
            return _told(session, name)

    def remove(self, name: str) -> None:
        """End the project; raise UsageError where there is none of that name."""
        with writing(self._engine) as session:
            self._check(session, name)
            session.execute(delete(_Belonging).where(_Belonging.project == name))
            session.execute(delete(_Project).where(_Project.name == name))

    def check(self, name: str) -> None:
        """Raise UsageError, which names the nearest, where there is no project of that name."""
        with reading(self._engine) as session:
            self._check(session, name)

    def all(self) -> tuple[Project, ...]:
        """Every project, by name."""
        with reading(self._engine) as session:
            return tuple(
                _told(session, name) for name in session.scalars(select(_Project.name).order_by(_Project.name))
            )

    def of(self, name: str) -> tuple[str, ...]:
        """The projects that a member belongs to, by name."""
        asked = select(_Belonging.project).where(_Belonging.name == name).order_by(_Belonging.project)
        with reading(self._engine) as session:  # one statement: it is asked for every call
            return tuple(session.scalars(asked))

    def of_nodes(self) -> Mapping[str, tuple[str, ...]]:
        """The projects of each node that belongs to any."""
        asked = select(_Belonging.name, _Belonging.project).where(_Belonging.role == Role.NODE)
        found: dict[str, tuple[str, ...]] = {}
        with reading(self._engine) as session:
            for name, project in session.execute(asked.order_by(_Belonging.project)):
                found[name] = (*found.get(name, ()), project)
        return found

    def _check(self, session: Session, name: str) -> None:
        if session.get(_Project, name) is None:
            known = session.scalars(select(_Project.name))
            raise UsageError(
                f"there is no project {name}{_hint(name, known)}",
                "privet federation project list, at the coordinator's",
            )


def _belonging(session: Session, project: str) -> list[_Belonging]:
    return list(session.scalars(select(_Belonging).where(_Belonging.project == project).order_by(_Belonging.name)))


def _told(session: Session, name: str) -> Project:
    made = session.get_one(_Project, name)
    members = _belonging(session, name)
    operators = tuple(one.name for one in members if one.role == Role.OPERATOR)
    return Project(name, made.created, operators, tuple(one.name for one in members if one.role == Role.NODE))


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""
