"""`privet federation`, `privet invite`, `privet revoke`: what a coordinator does about who belongs."""

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from ..privacy.budget.ledger import system_clock
from ..privacy.budget.options import AsJson, Because
from ..privacy.channel.files import FOLDER_OWNER_ONLY
from ..privacy.channel.identities import Identity, IdentityKey, Role
from ..privacy.channel.member import IDENTITY, Member, Membership
from ..privacy.channel.token import host_and_port
from ..privacy.errors import ChannelError, EnrolmentError, UsageError
from ..privacy.home import PASSPHRASE, Home, passphrase_from
from .federation_home import FEDERATION, FederationFacts, FederationHome

federation_app = typer.Typer(help="The parties under one certificate authority.", no_args_is_help=True)

RootPassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Holds the root key's passphrase (default: $PRIVET_PASSPHRASE, or asked)."),
]
Database = Annotated[
    str | None,
    typer.Option(help="The server's database, where it is not the default.", metavar="URL", envvar="PRIVET_DATABASE"),
]


@federation_app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="The federation's name: lower-case letters, digits, dashes.")],
    address: Annotated[str, typer.Option(help="Where members reach the server.", metavar="HOST:PORT")],
    enrolment_address: Annotated[
        str | None, typer.Option(help="Where new members join (default: the next port).", metavar="HOST:PORT")
    ] = None,
    operator: Annotated[str, typer.Option(help="Your own name as an operator.")] = "coordinator",
    passphrase_file: RootPassphraseFile = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Begin a federation: its root, its issuer, the server's key, and you as its first operator."""
    home = Home.of(os.environ)
    now = system_clock()
    _check_name(name, operator)
    facts = FederationFacts(name, address, enrolment_address or _next_port(address), now.isoformat(timespec="seconds"))
    folder = home.root / FEDERATION
    _check_free(home, folder)
    home.root.mkdir(mode=FOLDER_OWNER_ONLY, parents=True, exist_ok=True)
    made = FederationHome.create(folder, facts, now, _root_passphrase(passphrase_file, is_new=True))
    member = _first_operator(made, home, operator, database)
    if as_json:
        print(json.dumps(_facts(made) | {"operator": operator, "operator_key_fingerprint": member.key.fingerprint}))
        return
    ports = ", ".join(str(host_and_port(one)[1]) for one in (facts.address, facts.enrolment_address))
    print(f"made federation {name} in {folder}")
    print(f"root key {made.root_key}, encrypted; move it offline: only privet federation reissue needs it")
    print(
        f"issuing key {folder / 'issuing-key.pem'}, good until {made.issuing().not_after:%Y-%m-%d}; the server needs it"
    )
    print(f"you are operator {operator}, key fingerprint {member.key.fingerprint}")
    print(f"open TCP ports {ports} of {host_and_port(address)[0]} to the institutions")
    print("next: privet server")


@federation_app.command("show")
def show(as_json: AsJson = False) -> None:
    """Show the federation: its addresses, where its keys lie, how long its certificates are good."""
    made = _home()
    facts = _facts(made)
    if as_json:
        print(json.dumps(facts))
        return
    print("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items()))


@federation_app.command("members")
def members(database: Database = None, as_json: AsJson = False) -> None:
    """List who belongs to the federation, who did, and who was invited."""
    from .members import Members

    found: Members = _members(_home(), database)
    records, invited = found.all(), found.open_invitations(system_clock())
    if as_json:
        print(
            json.dumps({"members": [_jsonable(one) for one in records], "invited": [_invited(*one) for one in invited]})
        )
        return
    for one in records:
        number = f", node {one.node_id}" if one.node_id is not None else ""
        end = f", certificate until {one.not_after:%Y-%m-%d %H:%M} UTC" if one.not_after else ""
        because = f" ({one.because})" if one.because else ""
        print(f"{one.name}: {one.role}, {one.standing}{because}{number}{end}, key {one.key_fingerprint}")
    for name, role, expires in invited:
        print(f"{name}: invited as {role} until {expires:%Y-%m-%d %H:%M} UTC")


@federation_app.command("reissue")
def reissue(
    root_key: Annotated[Path | None, typer.Option(help="The root's key, where it was moved.", metavar="FILE")] = None,
    passphrase_file: RootPassphraseFile = None,
) -> None:
    """Replace the issuer, when its year nears the end; members notice nothing."""
    made = _home()
    key = root_key or made.root_key
    if not key.exists():
        raise EnrolmentError(
            f"{key}: the root's key is not there", "--root-key FILE, with the key from where you keep it"
        )
    issuing = made.reissue(key, _root_passphrase(passphrase_file, is_new=False), system_clock())
    print(f"made a new issuer, good until {issuing.not_after:%Y-%m-%d}")
    print("next: restart privet server")


@federation_app.command("allow-app")
def allow_app(
    name: Annotated[str, typer.Argument(help="The name by which plans ask for the app.", metavar="NAME")],
    server_app: Annotated[str, typer.Argument(help="Where its ServerApp is installed here.", metavar="MODULE:OBJECT")],
) -> None:
    """Let a Flower app be run in the server, in the server's own process: only what you trust as much as privet."""
    from .app_names import APPS, allow_server_app

    path = _home().folder / APPS
    allow_server_app(path, name, server_app)
    print(f"app {name} may be run in the server ({server_app}); it makes no privacy claim")
    print(f"at each institution: privet node allow-app {name} MODULE:OBJECT, with its ClientApp")
    print(f"to take that back, remove {name} from {path}")


def invite(
    name: Annotated[str | None, typer.Argument(help="The institution, as its node is called.")] = None,
    operator: Annotated[str | None, typer.Option(help="Invite an operator of this name.", metavar="NAME")] = None,
    auditor: Annotated[str | None, typer.Option(help="Invite an auditor of this name.", metavar="NAME")] = None,
    valid: Annotated[float, typer.Option(help="For how many hours the token is good.", metavar="HOURS")] = 24.0,
    replace: Annotated[bool, typer.Option("--replace", help="For a member that lost its key.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Print a token, good once, with which an institution, an operator or an auditor joins.

    The token is alone on standard output. Hand it over so that nobody else sees it.
    """
    from .registrar import Registrar

    asked = {Role.NODE: name, Role.OPERATOR: operator, Role.AUDITOR: auditor}
    named = [(role, given) for role, given in asked.items() if given is not None]
    if len(named) != 1:
        raise UsageError("an invitation is for one party", "privet invite NAME, --operator NAME or --auditor NAME")
    (role, invited) = named[0]
    home = _home()
    _check_name(home.facts.name, invited)
    registrar = Registrar(home, _members(home, database))
    token, expires = registrar.invite(invited, role, _hours(valid), replace)
    if as_json:
        said = {"name": invited, "role": role, "expires": expires.isoformat(timespec="seconds"), "token": token.text()}
        print(json.dumps(said))
        return
    print(f"invited {role} {invited} until {expires:%Y-%m-%d %H:%M} UTC; the token is good once:", file=sys.stderr)
    print(token.text(), flush=True)
    print(f"there: privet join TOKEN; it needs a way out to {home.facts.enrolment_address}", file=sys.stderr)


def revoke(
    name: Annotated[str, typer.Argument(help="The member.")], because: Because, database: Database = None
) -> None:
    """End a membership: its certificates are refused from now on, its open stream ends within a second."""
    _members(_home(), database).revoke(name, because, system_clock())
    print(f"revoked {name}; nobody else is touched")


def _first_operator(made: FederationHome, home: Home, name: str, database: str | None) -> Member:
    """The coordinator, made an operator as any other: by an invitation that is redeemed on the spot."""
    from .registrar import Registrar

    registrar, facts, key = Registrar(made, _members(made, database)), made.facts, IdentityKey.generate()
    token, _ = registrar.invite(name, Role.OPERATOR)
    chain = registrar.join(token.secret, key.csr())
    membership = Membership(facts.name, Role.OPERATOR, name, facts.address, facts.enrolment_address)
    return Member.create(home.root / IDENTITY, membership, key, chain, made.root, system_clock())


def _check_name(federation: str, name: str) -> None:
    try:
        Identity(federation, Role.OPERATOR, name)
    except ChannelError as error:
        raise UsageError(error.message, error.remedy) from None


def _check_free(home: Home, folder: Path) -> None:
    for taken in (folder, home.root / IDENTITY):
        if taken.exists() and any(taken.iterdir()):
            raise EnrolmentError(f"{taken}: is there already", "$PRIVET_HOME with another folder")


def _home() -> FederationHome:
    return FederationHome.load(Home.of(os.environ).root / FEDERATION)


def _members(home: FederationHome, database: str | None) -> Any:
    from .database import open_database
    from .members import Members

    return Members(open_database(database or home.database))


def _facts(made: FederationHome) -> dict[str, str]:
    from cryptography import x509

    from ..privacy.channel.authority import root_fingerprint

    root = x509.load_pem_x509_certificate(made.root)
    lies = str(made.root_key) if made.root_key.exists() else "not here"
    return asdict(made.facts) | {
        "folder": str(made.folder),
        "root_fingerprint": root_fingerprint(root).hex(),
        "root_until": root.not_valid_after_utc.date().isoformat(),
        "root_key": lies,
        "issuer_until": made.issuing().not_after.date().isoformat(),
    }


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    host_and_port(address)
    return f"{host}:{int(port) + 1}"


def _hours(valid: float) -> timedelta:
    try:
        return timedelta(hours=valid)
    except (OverflowError, ValueError):
        raise UsageError(f"--valid {valid}: not a number of hours", "--valid 24") from None


def _root_passphrase(file: Path | None, is_new: bool) -> bytes:
    """From the file or the environment; else asked in a terminal, twice where it is new, and never shown."""
    found = passphrase_from(file, os.environ)
    if found:
        return found
    if not sys.stdin.isatty():
        raise UsageError("the root's key needs a passphrase", f"--passphrase-file FILE, or ${PASSPHRASE}")
    asked: str = typer.prompt("passphrase of the root's key", hide_input=True, confirmation_prompt=is_new, err=True)
    return asked.encode()


def _jsonable(record: Any) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(record).items()}


def _invited(name: str, role: Role, expires: datetime) -> dict[str, str]:
    return {"name": name, "role": role, "expires": expires.isoformat(timespec="seconds")}
