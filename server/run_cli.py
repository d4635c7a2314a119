"""`privet run`: submit a plan, follow its run, stop it, go on with it, fetch its model."""

import json
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..privacy.budget.ledger import system_clock
from ..privacy.budget.options import AsJson, PassphraseFile
from ..privacy.channel.control_client import ControlClient, ControlError, UnreachableError, View
from ..privacy.channel.control_client import control_of as _control_of
from ..privacy.channel.dial import bring_up_to_date
from ..privacy.channel.download import check_target, download
from ..privacy.channel.identities import Role
from ..privacy.channel.member import Member
from ..privacy.errors import UsageError
from ..privacy.home import Home, passphrase_from
from ..privacy.plan_app import AnySubmission, AppPlan, resolve_app
from ..privacy.plan_file import read_any_plan
from ..privacy.signed import SignedSubmission, sign
from ..privacy.submission import resolve
from .run_text import epsilon_lines, event_line, page_lines, run_line

run_app = typer.Typer(help="Submit a plan, follow its run, fetch its model.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id, or the beginning of it.", metavar="ID")]
_LONGEST_NAME = 48  # of the plan in a run id: with day and chance it stays below the 63 characters of a name
_LONGEST_DAYS = 366


@run_app.command("submit")
def submit_plan(
    plan: Annotated[Path, typer.Argument(help="The plan's file.", metavar="PLAN")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value takes the place of a key; no value removes it."),
    ] = None,
    validity: Annotated[
        int, typer.Option(help="Days in which nodes may admit it.", min=1, max=_LONGEST_DAYS, metavar="DAYS")
    ] = 30,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show how it goes.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign a plan as this operator and hand it to the server, which begins the run."""
    asked = read_any_plan(plan, assignments or [])
    member, client = _opened(passphrase_file)
    if member.identity.role is not Role.OPERATOR:
        raise UsageError(f"{member.identity.uri} is no operator", "ask the coordinator: privet invite --operator NAME")
    bring_up_to_date(member)
    submission = _resolved(asked, member, system_clock(), timedelta(days=validity))
    run = _handed_in(client, sign(submission, member.key, member.chain))
    if follow:
        if not as_json:
            print("\n".join(_submitted_lines(run)))
        _follow(client, run["run_id"], as_json)
    elif as_json:
        print(json.dumps(run))
    else:
        print("\n".join([*_submitted_lines(run), f"next: privet run watch {run['run_id']}"]))


@run_app.command("list")
def list_runs(passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    runs = _opened(passphrase_file)[1].runs()
    if as_json:
        print(json.dumps(runs))
    else:
        print("\n".join(run_line(run) for run in runs) or "no runs; next: privet run submit PLAN")


@run_app.command("show")
def show_run(run: RunId, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Say all about a run: where it stands, who takes part, what it costs in epsilon."""
    client = _opened(passphrase_file)[1]
    page = client.run(_found(client, run))
    print(json.dumps(page) if as_json else "\n".join(page_lines(page)))


@run_app.command("logs")
def show_logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the run has ended.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a run, a line for each event."""
    client = _opened(passphrase_file)[1]
    run_id = _found(client, run)
    if follow:
        _follow(client, run_id, as_json)
        return
    for view in client.watch(run_id):
        if "event" in view:
            print(json.dumps(view["event"]) if as_json else event_line(view["event"]))


@run_app.command("watch")
def watch_run(run: RunId, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Follow a run until it has ended. Ctrl-C ends the watching, not the run."""
    client = _opened(passphrase_file)[1]
    _follow(client, _found(client, run), as_json)


@run_app.command("stop")
def stop_run(run: RunId, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Stop a run. What was done is kept."""
    client = _opened(passphrase_file)[1]
    page = client.stop(_found(client, run))
    print(json.dumps(page) if as_json else f"run {page['run_id']}: {page['state']}; next: {_RESUME(page['run_id'])}")


@run_app.command("resume")
def resume_run(run: RunId, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped or has failed, from its newest checkpoint; an app's run begins anew."""
    client = _opened(passphrase_file)[1]
    page = client.resume(_found(client, run))
    anew = ", and begins anew: privet keeps no checkpoint of an app" if page.get("app") else ""
    told = f"run {page['run_id']}: {page['state']}{anew}; next: {_WATCH(page['run_id'])}"
    print(json.dumps(page) if as_json else told)


@run_app.command("model")
def fetch_model(
    run: RunId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.", metavar="FILE")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the trained model, and compare it with the digest that the server has told."""
    check_target(out, force)
    client = _opened(passphrase_file)[1]
    run_id = _found(client, run)
    model = client.run(run_id)["model"] or {"bytes": 0, "sha256": None}  # without one, the server says why
    size = download(client.model(run_id), out, most=model["bytes"], sha256=model["sha256"], is_forced=force)
    told = {"run_id": run_id, "file": str(out), "bytes": size, "sha256": model["sha256"]}
    print(json.dumps(told) if as_json else f"wrote {out}: {size} bytes, SHA-256 {model['sha256']}")


def _opened(passphrase_file: Path | None) -> tuple[Member, ControlClient]:
    return _control_of(Home.of(os.environ).root, passphrase_from(passphrase_file, os.environ))


def _resolved(asked: Any, member: Member, now: datetime, validity: timedelta) -> AnySubmission:
    run_id = f"{asked.run.name[:_LONGEST_NAME]}-{now:%Y%m%d}-{secrets.token_hex(2)}"
    federation, operator = member.identity.federation, member.identity.name
    resolved = resolve_app if isinstance(asked, AppPlan) else resolve
    return resolved(asked, federation=federation, run_id=run_id, operator=operator, now=now, validity=validity)


def _handed_in(client: ControlClient, signed: SignedSubmission) -> View:
    """The run's page. A lost reply is asked for once more: the same submission twice is one run."""
    try:
        return client.submit(signed)
    except UnreachableError:
        return client.submit(signed)


def _submitted_lines(run: View) -> list[str]:
    return [f"submitted run {run['run_id']}", *epsilon_lines(run)]


def _found(client: ControlClient, beginning: str) -> str:
    """The run id that is meant; what is none is left to the server, which names the nearest."""
    known = [str(run.get("run_id")) for run in client.runs()]
    fitting = [run_id for run_id in known if run_id.startswith(beginning)]
    if beginning in known or not fitting:
        return beginning
    if len(fitting) > 1:
        raise UsageError(f"{len(fitting)} runs begin with {beginning}: {', '.join(fitting[:5])}", "more of the run id")
    return fitting[0]


def _follow(client: ControlClient, run_id: str, as_json: bool) -> None:
    """Show the run until it has ended. Raises ControlError where it did not end well."""
    from .run_watch import Watching, followed

    watching = Watching(Console(stderr=as_json))
    try:
        if as_json:
            for view in followed(client, run_id, lambda: None):
                watching.run = view.get("run", watching.run)
                print(json.dumps(view), flush=True)
        else:
            with watching:
                for view in followed(client, run_id, watching.away):
                    watching.show(view)
    except KeyboardInterrupt:
        typer.echo(f"run {run_id} goes on; follow it again: {_WATCH(run_id)}", err=True)
        raise typer.Exit(1) from None
    _tell_end(watching.run, as_json)


def _tell_end(run: View, as_json: bool) -> None:
    if run["state"] == "finished":
        if not as_json:
            print("\n".join([*page_lines(run), *([f"next: {_MODEL(run['run_id'])}"] if run["has_model"] else [])]))
        return
    if run["error"]:
        remedy = f"{run['error']['try']}; then {_RESUME(run['run_id'])}"
        raise ControlError(f"run {run['run_id']} failed: {run['error']['text']}", remedy, exit_code=1)
    raise ControlError(f"run {run['run_id']} is {run['state']}", _RESUME(run["run_id"]), exit_code=1)


_WATCH = "privet run watch {}".format
_RESUME = "privet run resume {}".format
_MODEL = "privet run model {} -o model.safetensors".format
