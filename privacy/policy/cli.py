"""`privet policy`: see it, change it, ask what it would say, and what it has said."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..budget.options import AsJson, PassphraseFile
from ..errors import PolicyError, PrivetError, UsageError
from ..home import Home, passphrase_from
from .allow_cli import allow_command
from .check import doubts
from .edit import edited, replaced_by_file, text_at
from .policy_file import default_policy, read_rules
from .rules import Rules
from .sides import Asked, Logged, LogReader, Side

_REFUSED = 3
_POLL_SECONDS = 0.5  # of `log --follow`

Which = Annotated[
    str | None, typer.Option("--side", help="Whose policy, where a home has both.", metavar="node|server")
]


@dataclass(frozen=True, slots=True)
class Place:
    """A home, and the side whose policy is meant there."""

    home: Home
    side: Side

    @property
    def path(self) -> Path:
        """The policy's file."""
        return self.side.policy(self.home)

    @property
    def shipped(self) -> str:
        """The policy that ships for this side."""
        return default_policy(self.side.name)

    @property
    def is_shipped(self) -> bool:
        """Whether there is no file, and the policy that ships holds."""
        return not self.path.exists() and self.side.needs_no_file(self.home)

    def rules(self) -> Rules:
        """What holds, as the party that runs here has it."""
        if self.is_shipped:
            return Rules(self.shipped)
        return read_rules(self.path)


def policy_app(sides: Sequence[Side]) -> typer.Typer:
    """The commands, for these sides."""
    app = typer.Typer(help="What may be done here: see it, change it, ask what it would say.", no_args_is_help=True)

    def at(which: str | None) -> Place:
        home = Home.of(os.environ)
        return Place(home, _side(sides, home, which))

    app.command("show")(_show(at))
    app.command("edit")(_edit(at))
    app.command("check")(_check(at))
    app.command("explain")(_explain(at))
    app.command("allow")(allow_command(at))
    app.command("log")(_log(at))
    return app


def _side(sides: Sequence[Side], home: Home, which: str | None) -> Side:
    named = {side.name: side for side in sides}
    if which is not None and which not in named:
        raise UsageError(f"--side {which}: not one of {', '.join(named)}", "--side node")
    found = [side for side in sides if (side.name == which if which else side.is_at(home))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"{home.root}: neither a node's home nor a server's",
            "privet dataset add or privet join, or $PRIVET_HOME with another folder; --side node begins here",
        )
    raise UsageError(f"{home.root}: a node's home and a server's", "--side node, or --side server")


At = Callable[[str | None], Place]


def _show(at: At) -> Callable[..., None]:
    def show(which: Which = None, as_json: AsJson = False) -> None:
        """Print the policy, and whether it holds."""
        place = at(which)
        text = text_at(place.path, place.shipped if place.is_shipped else "")
        rules, problems = None, tuple[str, ...]()
        try:
            rules = place.rules()
        except PolicyError as error:
            problems = error.problems
        if as_json:
            print(json.dumps(_shown_json(place, text, rules, problems)))
            return
        if text:
            print(text, end="" if text.endswith("\n") else "\n")
        for problem in problems if place.path.exists() else ():
            print(f"problem: {problem}", file=sys.stderr)
        print(_standing(place, rules), file=sys.stderr)

    return show


def _shown_json(place: Place, text: str, rules: Rules | None, problems: Sequence[str]) -> dict[str, Any]:
    return {
        "side": place.side.name,
        "path": str(place.path),
        "exists": place.path.exists(),
        "is_valid": rules is not None,
        "hash": rules.hash if rules else None,
        "rules": [{"id": one.id, "line": one.line, "effect": one.effect} for one in rules.rules] if rules else [],
        "problems": list(problems),
        "text": text,
    }


def _standing(place: Place, rules: Rules | None) -> str:
    if rules is None and not place.path.exists():
        return "there is no policy: nothing is permitted; next: privet policy edit, or privet policy allow"
    if rules is None:
        last = _last_hash(place)
        held = f" (its newest decision was by those of hash {last[:12]})" if last else ""
        return (
            f"not valid: a {place.side.name} that runs holds on to the rules before{held}, one that starts now permits "
            "nothing; next: privet policy edit"
        )
    shipped = "" if place.path.exists() else ", as it ships: there is no file"
    return f"valid: {_counted(rules)} of the {place.side.name}, hash {rules.hash}{shipped}"


def _last_hash(place: Place) -> str:
    """The hash of the rules that decided last; empty where nothing was decided, or it cannot be read."""
    last = ""
    with suppress(PrivetError):
        for one in place.side.log(place.home, passphrase_from(None, os.environ))():
            last = str(one.body.get("policy") or last)
    return last


def _counted(rules: Rules) -> str:
    return _many(len(rules.rules), "rule")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _edit(at: At) -> Callable[..., None]:
    def edit(
        file: Annotated[
            Path | None, typer.Option("--file", help="Take this file's text, without an editor.", metavar="FILE")
        ] = None,
        which: Which = None,
    ) -> None:
        """Change the policy in an editor; it is written when it is valid."""
        place = at(which)
        if file is not None:
            rules: Rules | None = replaced_by_file(place.path, file)
        else:
            rules = edited(place.path, place.shipped, os.environ)
        if rules is None:
            print("nothing was changed")
            return
        print(f"wrote {place.path}: {_counted(rules)}, hash {rules.hash[:12]}; it holds from the next decision on")
        asked = len(doubts(rules, place.side.known(place.home, passphrase_from(None, os.environ))))
        if asked:
            print(f"{_many(asked, 'question')} on it; next: privet policy check")

    return edit


def _check(at: At) -> Callable[..., None]:
    def check(
        file: Annotated[
            Path | None, typer.Argument(help="Another file than the policy here.", metavar="[FILE]")
        ] = None,
        strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where there are questions.")] = False,
        which: Which = None,
        passphrase_file: PassphraseFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Say what is wrong with a policy, and ask what a reviewer would ask."""
        place = at(which)
        try:
            rules = read_rules(file) if file is not None else place.rules()
        except PolicyError as error:
            if as_json:
                print(json.dumps({"is_valid": False, "problems": list(error.problems), "questions": []}))
            for problem in error.problems[:-1]:
                print(f"error: {problem}", file=sys.stderr)
            raise PolicyError(error.problems[-1:], "privet policy edit, or mend the file") from None
        found = doubts(rules, place.side.known(place.home, passphrase_from(passphrase_file, os.environ)))
        if as_json:
            told = [{"rule": one.rule, "line": one.line, "question": one.text} for one in found]
            print(json.dumps({"is_valid": True, "hash": rules.hash, "problems": [], "questions": told}))
        else:
            for one in found:
                print(f"question: {one.told}")
            counted = f"{_counted(rules)}, {_many(len(found), 'question')}"
            print(f"{file or place.path}: valid, {counted}, hash {rules.hash[:12]}")
        if found and strict:
            raise typer.Exit(1)

    return check


def _explain(at: At) -> Callable[..., None]:
    def explain(
        plan: Annotated[Path, typer.Argument(help="The plan's file.", metavar="PLAN")],
        operator: Annotated[str, typer.Option(help="Who would submit it.", metavar="NAME")],
        key: Annotated[
            str, typer.Option(help="Its key's fingerprint (default: the one pinned here).", metavar="FINGERPRINT")
        ] = "",
        assignments: Annotated[
            list[str] | None, typer.Option("--set", help="Set a key of the plan.", metavar="KEY=VALUE")
        ] = None,
        action: Annotated[str, typer.Option(help="Ask about one action alone.", metavar="ACTION")] = "",
        which: Which = None,
        passphrase_file: PassphraseFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Say whether a plan would be admitted, by which rules, and what would have to change.

        Changes nothing. A refusal, or a wait for a person, exits with 3.
        """
        place = at(which)
        asked = Asked(plan, operator, key.strip().lower(), assignments or (), action)
        passphrase = passphrase_from(passphrase_file, os.environ)
        report = place.side.explain(place.home, passphrase, place.rules(), asked)
        print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
        if not report.is_admitted:
            raise typer.Exit(_REFUSED)

    return explain


def _log(at: At) -> Callable[..., None]:
    def log(
        follow: Annotated[bool, typer.Option("--follow", help="Wait for more, until Ctrl-C.")] = False,
        run: Annotated[str, typer.Option(help="Of one run alone.", metavar="RUN")] = "",
        denied: Annotated[bool, typer.Option("--denied", help="Only what was not permitted.")] = False,
        which: Which = None,
        passphrase_file: PassphraseFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Print every decision, oldest first: when, who, what, and by which rules."""
        place = at(which)
        read = place.side.log(place.home, passphrase_from(passphrase_file, os.environ))

        def show(one: Logged) -> None:
            if (not run or one.run == run) and (one.is_denial or not denied):
                print(json.dumps(one.body) if as_json else one.text, flush=follow)

        if follow:
            followed(read, show, lambda: time.sleep(_POLL_SECONDS))
        else:
            for one in read():
                show(one)

    return log


def followed(read: LogReader, show: Callable[[Logged], None], wait: Callable[[], None]) -> None:
    """Show what is there and whatever comes; ends at Ctrl-C. `wait`: returns when it is time to look again."""
    try:
        while True:
            for one in read():
                show(one)
            wait()
    except KeyboardInterrupt:
        return
