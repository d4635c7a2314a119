"""`privet node trust | distrust | allow-app`: what an institution lets be asked of its node."""

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from ..privacy.errors import UsageError
from ..privacy.home import Home
from ..privacy.plan_file import toml_value
from .settings import NodeSettings, allow_app, pin, unpin

OperatorName = Annotated[str, typer.Argument(help="The operator's name in the federation.", metavar="NAME")]


def trust(
    name: OperatorName,
    fingerprint: Annotated[str, typer.Argument(help="Its key's fingerprint, 64 digits, heard from the operator.")],
) -> None:
    """Pin an operator's key: from the first pin on, only pinned operators are listened to."""
    path = _home().settings
    was = NodeSettings.read(path).operators.get(name)
    pin(path, name, fingerprint.strip().lower())
    print(f"operator {name} pinned" + (f", in place of key {was}" if was not in (None, fingerprint) else ""))
    print(_listened(NodeSettings.read(path)))


def distrust(name: OperatorName) -> None:
    """Take an operator's pin away; runs that were admitted before go on."""
    path = _home().settings
    unpin(path, name)
    print(f"operator {name} is not pinned any more; a run of its own goes on until: privet node withdraw RUN")
    print(_listened(NodeSettings.read(path)))


def allow(
    name: Annotated[str, typer.Argument(help="The name by which plans ask for the app.", metavar="NAME")],
    client_app: Annotated[str, typer.Argument(help="Where it is installed here.", metavar="MODULE:OBJECT")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of Flower's node config, in place of what was set before.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Let a Flower app be run, which makes no privacy claim: what it reads is not accounted for."""
    home = _home()
    allow_app(home.settings, name, client_app, _config_of(assignments) if assignments else None)
    print(f"app {name} may be run ({client_app}); what it reads is not accounted for")
    if not home.has_ledger():
        print("its runs are entered in the ledger, which is made with the first data set; next: privet dataset add")
    print(f"to take that back, remove [apps.{name}] from {home.settings}")


def _config_of(assignments: Sequence[str]) -> dict[str, object]:
    config = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {assignment}: not of the form KEY=VALUE", "--set partition-id=0")
        config[key.strip()] = toml_value(value.strip())
    return config


def _home() -> Home:
    return Home.of(os.environ)


def _listened(settings: NodeSettings) -> str:
    if settings.operators:
        return f"listened to: {', '.join(sorted(settings.operators))}"
    return "listened to: any operator that the coordinator names"
