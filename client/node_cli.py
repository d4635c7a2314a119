"""`privet node`: the institution's node, and what the institution tells it."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..privacy.budget.options import AsJson, PassphraseFile
from ..privacy.channel.member import IDENTITY, Member, own_certificate
from ..privacy.errors import ChannelError, UsageError
from ..privacy.home import Home, passphrase_from
from ..privacy.log_lines import Level, LogJson, LogLevel, write_logs
from .approval_cli import approve, pending, reject
from .health import check_connected, is_running, told_status
from .operator_cli import allow, distrust, trust
from .peer_cli import distrust_peer, trust_peer
from .state import MOST_WITHDRAWN, Orders, read_orders

node_app = typer.Typer(help="An institution's node: run it, pause it, ask how it stands.", invoke_without_command=True)

node_app.command("trust")(trust)
node_app.command("distrust")(distrust)
node_app.command("trust-peer")(trust_peer)
node_app.command("distrust-peer")(distrust_peer)
node_app.command("allow-app")(allow)
node_app.command("pending")(pending)
node_app.command("approve")(approve)
node_app.command("reject")(reject)

RunId = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@node_app.callback()
def run(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Say whether the node could run, and end.")] = False,
    stop_timeout: Annotated[
        float, typer.Option(help="Seconds that an end waits for what is being trained.", min=0)
    ] = 300.0,
    passphrase_file: PassphraseFile = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics for Prometheus (default: none; HOST: loopback).", metavar="[HOST:]PORT"),
    ] = None,
    healthcheck: Annotated[
        bool, typer.Option("--healthcheck", help="Say whether the node of this home runs and is connected, and end.")
    ] = False,
    log_json: LogJson = False,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run the institution's node: it dials out to the server and answers what its policy and budget allow.

    No port is opened here. Ctrl-C or SIGTERM stops it after what has begun; twice, at once.
    """
    if context.invoked_subcommand is not None:
        return
    home = Home.of(os.environ)
    if healthcheck:
        print(check_connected(home))
        return
    passphrase = passphrase_from(passphrase_file, os.environ)
    member = _member(home, passphrase)
    if check:
        _check(home, member, passphrase)
        return
    from .running import RunningNode

    write_logs(log_json, log_level)
    facts = member.membership
    print(f"node {facts.name} of federation {facts.federation}: dialling {facts.address}")
    print("no port is opened here; stop with Ctrl-C or SIGTERM", flush=True)
    asyncio.run(RunningNode(home, member, passphrase, stop_timeout, metrics).run())


@node_app.command("status")
def status(as_json: AsJson = False) -> None:
    """Say how the node stands: connection, offers, runs, and what it was told."""
    home = Home.of(os.environ)
    told: dict[str, Any] = {"is_running": is_running(home), "home": str(home.root)}
    told |= told_status(home)
    orders = read_orders(home.orders)
    told |= {"is_paused": orders.is_paused, "withdrawn": list(orders.withdrawn)}
    told |= {"key_fingerprint": _fingerprint(home)}
    if as_json:
        print(json.dumps(told))
        return
    print("\n".join(_lines(told)))


@node_app.command("pause")
def pause() -> None:
    """Take part in nothing until `privet node resume`; what has begun comes to its end."""
    _order(is_paused=True)
    print("paused: the node takes part in nothing; next: privet node resume")


@node_app.command("resume")
def resume() -> None:
    """Take part again."""
    _order(is_paused=False)
    print("resumed: the node takes part again")


@node_app.command("withdraw")
def withdraw(run_id: RunId) -> None:
    """Take no further part in one run, for good.

    What is being trained for it is ended. What was charged stays charged.
    """
    home = Home.of(os.environ)
    orders = read_orders(home.orders)
    if run_id not in orders.withdrawn:
        if len(orders.withdrawn) >= MOST_WITHDRAWN:
            raise UsageError(f"{MOST_WITHDRAWN} runs are withdrawn from, which is the most", "privet node leave")
        Orders(orders.is_paused, (*orders.withdrawn, run_id)).write(home.orders)
    print(f"withdrawn from run {run_id}: it gets no further answer; what was charged stays charged")


@node_app.command("leave")
def leave(yes: Yes = False, passphrase_file: PassphraseFile = None) -> None:
    """End the membership: certificates are revoked, and the ledger stays."""
    from ..privacy.channel.member_calls import leave_federation

    home = Home.of(os.environ)
    member = _member(home, passphrase_from(passphrase_file, os.environ))
    name = f"{member.identity.name} in federation {member.identity.federation}"
    if not yes and not typer.confirm(f"end the membership of {name}?", default=False):
        print("nothing was changed")
        return
    leave_federation(member)
    print(f"left: {name} is no member any more; ledger and key stay in {home.root}")


@node_app.command("model")
def model(
    run_id: RunId,
    out: Annotated[Path, typer.Option("-o", "--out", help="A new file for the model.", metavar="FILE")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Fetch the model of a finished run that this node took part in."""
    from ..privacy.channel.download import check_target, download
    from ..privacy.channel.member_calls import MOST_MODEL_BYTES, model_parts

    check_target(out, force)
    member = _member(Home.of(os.environ), passphrase_from(passphrase_file, os.environ))
    size = download(model_parts(member, run_id), out, most=MOST_MODEL_BYTES, sha256=None, is_forced=force)
    print(f"wrote {out}: {size} bytes, the model of run {run_id}")


def _member(home: Home, passphrase: bytes | None) -> Member:
    return Member.load(home.root / IDENTITY, passphrase)


def _check(home: Home, member: Member, passphrase: bytes | None) -> None:
    from .readiness import readiness

    failed = []
    for found in readiness(home, member, passphrase):
        print(f"{found.name}: {found.text}")
        failed += [] if found.is_fine else [found.name]
    if failed:
        raise ChannelError(f"not ready: {', '.join(failed)}", "mend what the lines above name, then check again")
    print("ready; next: privet node")


def _fingerprint(home: Home) -> str:
    """Of the node's own key, as its certificate has it; empty where nobody joined, or what was written is damaged."""
    try:
        return own_certificate(home.root / IDENTITY).key_fingerprint
    except ChannelError:
        return ""


def _order(is_paused: bool) -> None:
    home = Home.of(os.environ)
    Orders(is_paused, read_orders(home.orders).withdrawn).write(home.orders)


def _lines(told: dict[str, Any]) -> list[str]:
    if not told["is_running"]:
        return [f"no node runs in {told['home']}; next: privet node", *_told_lines(told)]
    since = f" since {told['since']}" if told.get("since") else ""
    why = f": {told['why']}" if told.get("why") else ""
    lines = [
        f"{told.get('state', 'starting')}{since}{why} (process {told.get('pid')})",
        f"offers tasks: {', '.join(f'{n} {v}' for n, v in told.get('tasks', {}).items()) or 'none'}",
        f"allows apps: {', '.join(told.get('apps', [])) or 'none'}",
        f"operators: {told.get('operators')}",
        f"cohorts: {told.get('peers')}",
        f"certificate until {told.get('certificate_expires')}, renewed by itself",
    ]
    if told.get("is_behind"):
        lines.append(f"trains nothing: {told['is_behind']}")
    lines += [
        f"run {one['run_id']} of {one['operator']} waits for {', '.join(one['missing'])}; next: privet node pending"
        for one in told.get("pending", [])
    ]
    lines += [
        f"run {run['run_id']}: {run['what'] if run['is_busy'] else 'waiting'}, {run['answered']} answers"
        + (f", last refusal {run['refused']}" if run["refused"] else "")
        for run in told.get("runs", [])
    ]
    return [*lines, *_told_lines(told)]


def _told_lines(told: dict[str, Any]) -> list[str]:
    lines = [f"key fingerprint {told['key_fingerprint']}, for others to pin"] if told["key_fingerprint"] else []
    lines += ["paused; next: privet node resume"] if told["is_paused"] else []
    return lines + [f"withdrawn from run {run}" for run in told["withdrawn"]]
