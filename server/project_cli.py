"""`privet federation project`: which operators and nodes belong together."""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..privacy.budget.ledger import system_clock
from ..privacy.budget.options import AsJson
from ..privacy.channel.identities import Role
from ..privacy.errors import UsageError
from ..privacy.home import Home
from ..privacy.plan import NAME_PATTERN
from .federation_cli import Database
from .federation_home import FEDERATION, FederationHome

project_app = typer.Typer(help="Operators and nodes that belong together.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The project, as plans name it: project = NAME in [run].", metavar="NAME")]
Operators = Annotated[list[str] | None, typer.Option("--operator", help="An operator; again for more.", metavar="NAME")]
Nodes = Annotated[list[str] | None, typer.Option("--node", help="A node; again for more.", metavar="NAME")]


@project_app.command("add")
def add(name: Name, operator: Operators = None, node: Nodes = None, database: Database = None) -> None:
    """Make a project, or add members to it. It holds at once, for runs that are under way too."""
    from .projects import Projects

    if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
        raise UsageError(f"{name!r} names no project", "lower-case letters, digits and dashes, at most 63")
    engine = _engine(database)
    _check_members(engine, Role.OPERATOR, operator or [])
    _check_members(engine, Role.NODE, node or [])
    print(_line(Projects(engine).add(name, system_clock(), operator or [], node or [])))


@project_app.command("remove")
def remove(
    name: Name,
    operator: Operators = None,
    node: Nodes = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: Database = None,
) -> None:
    """Take members out of a project; where none is named, end the project whole."""
    from .projects import Projects

    projects, leaving = Projects(_engine(database)), [*(operator or []), *(node or [])]
    if leaving:
        print(_line(projects.remove_members(name, leaving)))
        return
    projects.check(name)
    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", f"privet federation project remove {name} --yes")
    if not yes and not typer.confirm(f"end project {name}? its runs stay, and nobody belongs to them", default=False):
        raise typer.Abort
    projects.remove(name)
    print(f"project {name} is no more; its runs stay, and nobody belongs to them")


@project_app.command("list")
def list_projects(database: Database = None, as_json: AsJson = False) -> None:
    """List the projects, and who belongs to each."""
    from .projects import Projects

    found = Projects(_engine(database)).all()
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print("\n".join(map(_line, found)) or "there is no project; next: privet federation project add NAME")


def _line(project: Any) -> str:
    operators, nodes = ", ".join(project.operators) or "none", ", ".join(project.nodes) or "none"
    return f"project {project.name}: operators {operators}; nodes {nodes}"


def _check_members(engine: Any, role: Role, names: Iterable[str]) -> None:
    """Raise UsageError, naming the nearest, for one who neither is nor was invited to be a member in this role."""
    from .members import Members

    members = Members(engine)
    known = {one.name for one in members.all() if one.role is role}
    known |= {name for name, invited, _ in members.open_invitations(system_clock()) if invited is role}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UsageError(f"there is no {role} {name}{hint}", "privet federation members; privet invite")


def _engine(database: str | None) -> Any:
    from .database import open_database

    home = FederationHome.load(Home.of(os.environ).root / FEDERATION)
    return open_database(database or home.database)
