"""What several commands ask for: a number as an exact decimal, a passphrase file, an account's terms."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..plan_file import read_plan
from ..submission import claim_of
from .accounts import AccountTerms
from .charge import charged_events
from .filters import FilterName

# A number of at most 24 digits and a short exponent: what a person writes, and what decimals add up without loss.
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,3})?", re.ASCII)

PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Holds the key's passphrase (default: $PRIVET_PASSPHRASE, or none)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Because = Annotated[str, typer.Option(help="The reason, for the record.")]


def decimal(text: str) -> Decimal:
    """The exact decimal that a person wrote; raise UsageError for anything else.

    >>> decimal("1e-4")
    Decimal('0.0001')
    """
    if not _DECIMAL.fullmatch(text):
        raise UsageError(f"{text[:40]!r} is not a number above 0 in decimal", "a number such as 10, 0.5 or 1e-5")
    return Decimal(text)


Epsilon = Annotated[Decimal, typer.Option(parser=decimal, metavar="DECIMAL", help="What may be spent in all.")]
Delta = Annotated[Decimal, typer.Option(parser=decimal, metavar="DECIMAL", help="Well below one over the records.")]
Filter = Annotated[str | None, typer.Option("--filter", help="additive (default) or renyi: how charges add up.")]
Typical = Annotated[Path | None, typer.Option(help="With renyi: a plan to choose the order by.", metavar="PLAN")]
AllowNone = Annotated[bool, typer.Option("--allow-none", help="Admit runs without a claim; the first voids it.")]


def account_terms(
    unit: str, epsilon: Decimal, delta: Decimal, filter_name: str | None, typical: Path | None, allows_none: bool
) -> AccountTerms:
    """The terms that the options say; raise UsageError or BudgetError where they contradict each other."""
    names: dict[str, FilterName] = {"additive": "additive", "renyi": "renyi"}
    chosen = filter_name or "additive"
    if chosen not in names:
        raise UsageError(f"--filter {chosen}: not one of {', '.join(names)}", "--filter additive")
    if typical is not None and chosen != "renyi":
        raise UsageError("--typical chooses the order of a renyi filter", "--filter renyi, or leave out --typical")
    if typical is None:
        return AccountTerms(unit, epsilon, delta, names[chosen], allows_none=allows_none)
    plan = read_plan(typical)
    claim = claim_of(plan)
    if claim is None:
        raise UsageError(f"{typical}: makes no claim, so no order fits it", "--typical with a plan that has a unit")
    events = charged_events(plan, claim.noise_multiplier)
    return AccountTerms(unit, epsilon, delta, names[chosen], events, allows_none)
