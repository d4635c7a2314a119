"""`privet policy allow`: a permit with its bounds, written for those who do not write Cedar."""

import os
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from ..budget.options import decimal
from ..errors import UsageError
from ..home import passphrase_from
from .check import doubts
from .edit import replaced, text_at
from .rules import Rules
from .writer import LONGEST_ID, Grant, added, text_of

if TYPE_CHECKING:
    from .cli import Place

_NODE_ONLY = "privet policy edit, with the server's rules"


def allow_command(at: "Callable[[str | None], Place]") -> Callable[..., None]:
    """The command, for the home that `at` gives."""

    def allow(
        operator: Annotated[str, typer.Option(help="Who may.", metavar="NAME")],
        task: Annotated[str, typer.Option(help="What may be trained.", metavar="TASK")] = "",
        dataset: Annotated[str, typer.Option(help="On which data set.", metavar="NAME")] = "",
        epsilon: Annotated[
            Decimal | None,
            typer.Option(
                parser=decimal,
                metavar="DECIMAL",
                help="All its runs on the account together, at most (or --project's).",
            ),
        ] = None,
        key: Annotated[
            str, typer.Option(help="Its key's fingerprint, which is pinned too.", metavar="FINGERPRINT")
        ] = "",
        delta: Annotated[
            Decimal | None, typer.Option(parser=decimal, metavar="DECIMAL", help="Of a run, at most.")
        ] = None,
        noise: Annotated[
            Decimal | None, typer.Option(parser=decimal, metavar="DECIMAL", help="The noise multiplier, at least.")
        ] = None,
        min_nodes: Annotated[int | None, typer.Option(help="Of the plan, at least.")] = None,
        parties: Annotated[int | None, typer.Option(help="Parties of each round, at least; pin them.")] = None,
        secure_aggregation: Annotated[
            bool, typer.Option("--secure-aggregation", help="Only where the server sees the sum alone.")
        ] = False,
        weekdays: Annotated[bool, typer.Option("--weekdays", help="From Monday to Friday.")] = False,
        hours: Annotated[str, typer.Option(help="From the first hour to before the second.", metavar="8-18")] = "",
        until: Annotated[str, typer.Option(help="The last day.", metavar="YYYY-MM-DD")] = "",
        project: Annotated[str, typer.Option(help="Only runs of this project.", metavar="NAME")] = "",
        approval: Annotated[str, typer.Option(help="Whose approval each run waits for.", metavar="ROLE")] = "",
        app: Annotated[str, typer.Option(help="A Flower app, in place of a task.", metavar="NAME")] = "",
        name: Annotated[
            str, typer.Option("--id", help="The rules' id (default: of operator and data set).", metavar="NAME")
        ] = "",
        is_replaced: Annotated[bool, typer.Option("--replace", help="In place of the rules of that id.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the rules; write nothing.")] = False,
        which: Annotated[str | None, typer.Option("--side", metavar="node|server")] = None,
    ) -> None:
        """Permit an operator a task on a data set, on terms; each becomes a rule of its own."""
        place = at(which)
        _check(place.side.name, task, dataset, app, epsilon, parties or delta or noise or secure_aggregation or project)
        known = place.side.known(place.home, None)
        pinned = known.pins.get(operator, "")
        key = key.strip().lower()
        if key and pinned and key != pinned:
            raise UsageError(
                f"operator {operator} is pinned with another key, {pinned}",
                f"compare it with {operator}, then: privet node trust {operator} FINGERPRINT",
            )
        grant = Grant(
            id=name or "-".join(filter(None, (operator, app or dataset, project)))[:LONGEST_ID].rstrip(".-"),
            operator=operator,
            key=key or pinned,
            task=task,
            dataset=dataset,
            app=app,
            project=project,
            epsilon=epsilon,
            delta=delta,
            noise=noise,
            min_nodes=min_nodes,
            parties=parties,
            has_peers=known.has_peers,
            secure_aggregation=secure_aggregation,
            weekdays=weekdays,
            hours=_hours(hours),
            until=_day(until),
            approval=approval,
        )
        text = added(text_at(place.path, place.shipped), grant, is_replaced)
        if dry_run:
            Rules.of_bytes(text.encode())
            print(text_of(grant), end="")
            return
        rules = replaced(place.path, text)
        print(text_of(grant))
        print(f"wrote {place.path}: {len(rules.rules)} rules, hash {rules.hash[:12]}; they hold from now on")
        for line in place.side.pin(place.home, operator, key) if key and not pinned else ():
            print(line)
        known = place.side.known(place.home, passphrase_from(None, os.environ))
        for text in dict.fromkeys(doubt.text for doubt in doubts(rules, known) if doubt.rule in grant.ids):
            print(f"question: {text}")

    return allow


def _check(side: str, task: str, dataset: str, app: str, epsilon: Decimal | None, of_task: object) -> None:
    if side != "node":
        raise UsageError("allow writes what a node permits; this is the server's policy", _NODE_ONLY)
    if app and (task or dataset or epsilon is not None or of_task):
        raise UsageError("--app makes no claim and has no data set: privet cannot bound its epsilon", "--app alone")
    if not app and not (task and dataset and epsilon is not None):
        raise UsageError(
            "a task needs --task, --dataset and --epsilon",
            "--task digits --dataset ward7 --epsilon 3, or --app NAME",
        )


def _hours(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text, re.ASCII)
    if not found:
        raise UsageError(f"--hours {text[:40]}: not two hours", "--hours 8-18")
    return int(found[1]), int(found[2])


def _day(text: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until {text[:40]}: not a day", "--until 2027-06-30") from None
