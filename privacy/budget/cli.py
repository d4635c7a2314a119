"""`privet budget`: open an account, see what is spent, ask what a plan would cost, raise, close, recover."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from ..errors import BudgetError, Refusal, RefusedError
from ..home import Home, closed_after, passphrase_from
from ..plan_file import read_plan
from ..submission import Submission, resolve
from .accounting import shown
from .accounts import AccountBook, check_name, check_text
from .admission import Charge
from .book import Account
from .filters import renyi_epsilon
from .guard import Guard
from .ledger import system_clock
from .options import AllowNone, AsJson, Because, Delta, Epsilon, Filter, PassphraseFile, Typical, account_terms
from .statement import Charged, delta_left, release_expired, statements
from .statement_text import as_json as statement_json
from .statement_text import lines, shown_left, terms

budget_app = typer.Typer(help="An institution's accounts: what may be spent, and what was.", no_args_is_help=True)

_SLOW_RUNS = 20  # from so many on it takes more than a second
AccountName = Annotated[str, typer.Argument(help="The account's name.", metavar="ACCOUNT")]


@budget_app.command("open")
def open_account(
    account: AccountName,
    epsilon: Epsilon,
    delta: Delta,
    unit: Annotated[str, typer.Option(help="Whom it protects: record, group or node.")] = "record",
    filter_name: Filter = None,
    typical: Typical = None,
    allow_none: AllowNone = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Open an account: whom it protects, and what may be spent."""
    asked = account_terms(unit, epsilon, delta, filter_name, typical, allow_none)
    check_name("account", account)
    with closed_after(Home.of(os.environ).create_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        opened = accounts.open_account(account, asked)
    if as_json:
        print(json.dumps(_account_json(opened)))
    else:
        limit = terms(opened.unit, opened.relation, opened.delta)
        order = f" of order {opened.alpha}" if opened.alpha is not None else ""
        print(f"opened account {account}: epsilon {opened.epsilon} {limit}, {opened.filter} filter{order}")


@budget_app.command("show")
def show(
    account: Annotated[str | None, typer.Argument(help="One account (default: all).", metavar="[ACCOUNT]")] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what is spent, reserved, left, and refused."""
    home = Home.of(os.environ)
    if account is None and not home.has_ledger():
        print("[]" if as_json else f"no account was opened under {home.root}; next: privet dataset add")
        return
    with closed_after(home.open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        if account is not None:
            _account(accounts, account)
        found = list(statements(accounts, system_clock(), account, _counted))
    if as_json:
        told = [statement_json(statement) for statement in found]
        print(json.dumps(told[0] if account is not None else told))
    else:
        print("\n\n".join("\n".join(lines(statement)) for statement in found) or "no account is open")


@budget_app.command("check")
def check(
    plan: Annotated[Path, typer.Argument(help="The plan's file.", metavar="PLAN")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a plan would be admitted, and at what cost.

    Changes nothing. What would be left afterwards is told too; a refusal exits with 3.
    """
    asked = read_plan(plan)
    now = system_clock().replace(microsecond=0)  # a submission's times have whole seconds
    try:
        submission = resolve(asked, federation="check", run_id="check", operator="check", now=now)
        with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
            account, charge = _weighed(accounts, submission, now)
    except RefusedError as refusal:
        if as_json:
            told = {"is_admitted": False, "code": refusal.code.value, "why": refusal.message, "remedy": refusal.remedy}
            print(json.dumps(told))
        raise
    left, left_delta = _left_after(account, charge)
    if as_json:
        print(json.dumps(_check_json(account, asked.privacy.unit, charge, left, left_delta)))
        return
    print(f"admitted: plan {asked.run.name} on data set {asked.dataset} (account {account.name})")
    if not charge.epsilon.is_finite():
        print(f"cost: no claim; account {account.name} would be void, its epsilon infinite from then on")
        return
    print(f"cost: epsilon {shown(charge.epsilon)} {terms(asked.privacy.unit, account.relation, charge.delta)}")
    print(f"left afterwards: epsilon {shown_left(left)} {terms(account.unit, account.relation, left_delta)}")


@budget_app.command("raise")
def raise_account(
    account: AccountName,
    epsilon: Epsilon,
    because: Because,
    passphrase_file: PassphraseFile = None,
) -> None:
    """State a new, larger claim, with its reason.

    What was decided after seeing results is covered by the larger claim alone.
    """
    check_text("--because", because)
    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        before = _account(accounts, account).epsilon
        raised = accounts.raise_account(account, epsilon, because)
    print(
        f"raised account {account} from epsilon {before} to {raised.epsilon} "
        f"{terms(raised.unit, raised.relation, raised.delta)}: a new, larger claim"
    )


@budget_app.command("close")
def close_account(account: AccountName, because: Because, passphrase_file: PassphraseFile = None) -> None:
    """End an account: it admits nothing more."""
    check_text("--because", because)
    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        accounts.close_account(account, because)
    print(f"closed account {account}: it admits nothing more")


@budget_app.command("recover")
def recover_charges(
    witness: Annotated[Path, typer.Option(help="What the server remembers of this ledger.", metavar="FILE")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Charge what a restored backup has forgotten.

    Every charge that the witness holds and the ledger lacks is charged again, in full.
    """
    from .recovery import recover

    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        recovered = recover(accounts, witness)
    if as_json:
        charges = [
            asdict(charge) | {"epsilon": _number(charge.epsilon), "delta": _number(charge.delta)}
            for charge in recovered.charges
        ]
        print(json.dumps({"head": recovered.head.sequence, "was_behind": recovered.is_behind, "charges": charges}))
        return
    for charge in recovered.charges:
        cost = f"epsilon {shown(charge.epsilon)} {terms(charge.unit, charge.relation, charge.delta)}"
        told = cost if charge.epsilon.is_finite() else "no claim, so the account is void"
        print(f"charged run {charge.run} to account {charge.account}: {told}")
    was = "was behind" if recovered.is_behind else "holds"
    print(f"the ledger {was} entry {recovered.head.sequence}, the newest witnessed")
    print(f"recovered {len(recovered.charges)} charges")


def _counted(charges: Sequence[Charged]) -> Iterable[Charged]:
    """The charges, with a progress bar where somebody looks on."""
    hidden = len(charges) < _SLOW_RUNS or not sys.stderr.isatty()
    return track(charges, "adding up runs", console=Console(stderr=True), transient=True, disable=hidden)


def _weighed(accounts: AccountBook, submission: Submission, now: datetime) -> tuple[Account, Charge]:
    """What an admission would say now: expired reservations are given back first, as it would, in memory alone."""
    guard = Guard(accounts, submission.plan.dataset)
    declared = guard.dataset
    if declared.task != submission.plan.run.task:
        raise RefusedError(
            Refusal.UNKNOWN_TASK,
            f"data set {declared.name} is for task {declared.task!r}, the plan names {submission.plan.run.task!r}",
            "name the task and the data set that belong together",
        )
    release_expired(accounts, now)
    return accounts.book.accounts[declared.account], guard.weigh(submission, now)


def _left_after(account: Account, charge: Charge) -> tuple[Decimal, Decimal]:
    if not charge.epsilon.is_finite():
        return Decimal(0), Decimal(0)
    if account.alpha is not None:
        spent = renyi_epsilon(account.spent_divergence + charge.divergence, account.delta, account.alpha)
        return max(Decimal(0), account.epsilon - spent), account.delta
    return account.epsilon_left - charge.epsilon, delta_left(account) - charge.delta


def _check_json(account: Account, unit: str, charge: Charge, left: Decimal, left_delta: Decimal) -> dict[str, object]:
    return {
        "is_admitted": True,
        "account": account.name,
        "unit": unit,
        "relation": account.relation,
        "epsilon": _number(charge.epsilon),
        "delta": _number(charge.delta),
        "epsilon_left": _number(left),
        "delta_left": _number(left_delta),
        "voids_account": not charge.epsilon.is_finite(),
    }


def _account_json(account: Account) -> dict[str, object]:
    return {
        "account": account.name,
        "unit": account.unit,
        "relation": account.relation,
        "epsilon": _number(account.epsilon),
        "delta": _number(account.delta),
        "filter": account.filter,
        "alpha": account.alpha,
        "allows_none": account.allows_none,
    }


def _account(accounts: AccountBook, name: str) -> Account:
    found = accounts.book.accounts.get(name)
    if found is None:
        known = ", ".join(accounts.book.accounts) or "none"
        raise BudgetError(f"no account {name}; open: {known}", "privet budget open ACCOUNT")
    return found


def _number(value: Decimal) -> float | None:
    return float(value) if value.is_finite() else None
