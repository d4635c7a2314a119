"""`privet join`: from a token to a member, in one command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..privacy.budget.options import AsJson, PassphraseFile
from ..privacy.channel.files import FOLDER_OWNER_ONLY, OWNER_ONLY, write_whole
from ..privacy.channel.identities import Role
from ..privacy.channel.member import IDENTITY
from ..privacy.channel.token import LONGEST_TOKEN, Token
from ..privacy.errors import ChannelError, UsageError
from ..privacy.home import Home, passphrase_from
from ..privacy.policy.policy_file import default_policy

_TEMPLATE = Path(__file__).parent / "node.toml.tmpl"
_NEXT = {
    Role.NODE: "privet dataset add, privet policy allow, then privet node",
    Role.OPERATOR: "privet run submit PLAN",
    Role.AUDITOR: "privet run list",
}


def join(
    token: Annotated[str, typer.Argument(help="The token; - reads it from standard input, unseen by other users.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Join a federation with a token from its coordinator.

    The key is made here and never leaves. Nothing is offered until privet dataset add, and nothing is permitted until
    privet policy allow.
    """
    from .join import join as join_federation
    from .preflight import preflight

    home, passphrase = Home.of(os.environ), passphrase_from(passphrase_file, os.environ)
    invitation = Token.of(sys.stdin.read(LONGEST_TOKEN + 1) if token == "-" else token)
    if not yes:
        _confirm(invitation)
    home.root.mkdir(mode=FOLDER_OWNER_ONLY, parents=True, exist_ok=True)
    joined = join_federation(invitation, home.root / IDENTITY, passphrase)
    member = joined.member
    if member.identity.role is Role.NODE and not home.settings.exists():
        write_whole(home.settings, _TEMPLATE.read_bytes())
    if member.identity.role is Role.NODE and not home.policy.exists():
        write_whole(home.policy, default_policy("node").encode(), OWNER_ONLY)
    checks = list(preflight(joined, home.root))
    if as_json:
        print(
            json.dumps(
                {
                    "federation": member.identity.federation,
                    "role": member.identity.role,
                    "name": member.identity.name,
                    "address": member.address,
                    "key_fingerprint": member.key.fingerprint,
                    "expires": member.certificate.not_after.isoformat(),
                    "checks": [{"name": one.name, "fine": one.is_fine, "text": one.text} for one in checks],
                }
            )
        )
    else:
        print(f"joined {member.identity.federation} as {member.identity.role} {member.identity.name}")
        print(f"identity kept in {member.folder}")
        if member.identity.role is Role.OPERATOR:
            print(f"key fingerprint {member.key.fingerprint}")
            print("tell it to the institutions on another way than by this server; each pins it before it trusts you")
        if member.identity.role is Role.NODE:
            print(f"key fingerprint {member.key.fingerprint}")
            print("tell it to institutions whose policy asks who else takes part: privet node trust-peer pins it there")
        for one in checks:
            print(f"{one.name}: {one.text}")
        print(f"next: {_NEXT[member.identity.role]}")
    if wrong := [one for one in checks if not one.is_fine]:
        raise ChannelError(
            f"joined, but {wrong[0].name}: {wrong[0].text}", "put this right before the next step; the token is used up"
        )


def _confirm(invitation: Token) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", "privet join --yes")
    print(f"federation {invitation.federation}, as {invitation.role} {invitation.name}")
    print(f"server {invitation.address}, enrolment {invitation.enrolment_address}")
    typer.confirm("join?", abort=True)
