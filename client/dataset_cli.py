"""`privet dataset`: what an institution offers, where it lies, and which account pays for it."""

import json
import os
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from ..privacy.budget.accounts import AccountTerms, check_declaration
from ..privacy.budget.book import Account, DeclaredDataset
from ..privacy.budget.options import AllowNone, AsJson, Filter, PassphraseFile, Typical, account_terms, decimal
from ..privacy.budget.statement_text import terms as privacy_terms
from ..privacy.errors import BudgetError, UsageError
from ..privacy.home import Home, closed_after, passphrase_from
from .tasks.installed import installed_task

dataset_app = typer.Typer(help="What an institution offers for training.", no_args_is_help=True)

DatasetName = Annotated[str, typer.Argument(help="The data set's name, as plans say it.", metavar="NAME")]
_OWN_EYES = "for your own eyes: computed from records without noise, not to be sent to anybody"


@dataset_app.command("add")
def add(
    name: DatasetName,
    path: Annotated[Path, typer.Option(help="The file with the records.")],
    task: Annotated[str, typer.Option(help="The task that reads it.")],
    declared_size: Annotated[int, typer.Option(help="How many records, in public.")],
    account: Annotated[
        str | None, typer.Option(help="Its account (default: NAME); joined where no --epsilon is given.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Of a new account: record (default), group or node.")] = None,
    epsilon: Annotated[
        Decimal | None, typer.Option(parser=decimal, metavar="DECIMAL", help="Of a new account: to spend in all.")
    ] = None,
    delta: Annotated[
        Decimal | None, typer.Option(parser=decimal, metavar="DECIMAL", help="Of a new account: below 1 / records.")
    ] = None,
    filter_name: Filter = None,
    typical: Typical = None,
    allow_none: AllowNone = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Declare a data set, once, with its account.

    With --epsilon and --delta its account is opened; with --account alone it joins one that is open.
    """
    opening = _opening(account, unit, epsilon, delta, filter_name, typical, allow_none)
    dataset = DeclaredDataset(name, task, _real_path(path), declared_size, account or name)
    check_declaration(dataset)
    installed_task(task)
    home, passphrase = Home.of(os.environ), passphrase_from(passphrase_file, os.environ)
    opened = home.open_book(passphrase) if opening is None else home.create_book(passphrase)
    with closed_after(opened) as accounts:
        if opening is None:
            accounts.add_dataset(dataset)
        else:
            accounts.open_with_dataset(opening, dataset)
    _tell_added(dataset, accounts.book.accounts[dataset.account], opening is not None, as_json)


@dataset_app.command("check")
def check(name: DatasetName, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Compare a data set with its declaration.

    Locally only: what it prints is computed from records, and is not to be sent to anybody.
    """
    from .dataset_check import check_dataset
    from .tasks.registry import load_task

    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        datasets = accounts.book.datasets
    if name not in datasets:
        raise BudgetError(f"no data set {name}; declared: {', '.join(datasets) or 'none'}", "privet dataset list")
    checked = check_dataset(load_task(datasets[name].task), datasets[name])
    if as_json:
        print(json.dumps({"note": _OWN_EYES, **asdict(checked)}))
        return
    labels = f"{checked.labels[0]} to {checked.labels[1]}" if checked.labels else "none"
    cells = checked.cells_outside
    outside = "unknown: the task does not tell its columns" if cells is None else str(sum(cells.values()))
    lines = [
        _OWN_EYES,
        f"data set {checked.name}: task {checked.task}, {checked.path}",
        f"records: {checked.records}, declared {checked.declared_size}",
        f"labels: {labels}, declared 0 to {checked.classes - 1}",
        f"empty cells: {checked.cells_empty} in {checked.records_with_empty_cells} records",
        f"cells outside the declared ranges: {outside}",
        *(f"column {column}: {count} cells outside its range" for column, count in (cells or {}).items()),
        *(f"note: {problem}" for problem in checked.problems),
    ]
    print("\n".join(lines))


@dataset_app.command("list")
def list_datasets(passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """List what is offered, and which account pays for it."""
    home = Home.of(os.environ)
    if not home.has_ledger():
        print("[]" if as_json else f"nothing is declared under {home.root}; next: privet dataset add")
        return
    with closed_after(home.open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        book = accounts.book
    if as_json:
        print(json.dumps([asdict(dataset) for dataset in book.datasets.values()]))
        return
    for found in book.datasets.values():
        print(
            f"{found.name}: task {found.task}, declared size {found.declared_size}, account {found.account}, "
            f"{found.path}"
        )
    if not book.datasets:
        print("no data set is offered; next: privet dataset add")


@dataset_app.command("remove")
def remove(name: DatasetName, passphrase_file: PassphraseFile = None) -> None:
    """Take a data set from the offer.

    What it was charged stays with its account.
    """
    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        declared = accounts.book.datasets.get(name)
        accounts.remove_dataset(name)
    owner = declared.account if declared else ""
    print(f"removed data set {name} from the offer; account {owner} keeps what was spent")


def _opening(
    account: str | None,
    unit: str | None,
    epsilon: Decimal | None,
    delta: Decimal | None,
    filter_name: str | None,
    typical: Path | None,
    allow_none: bool,
) -> AccountTerms | None:
    """The terms of the account that is to be opened, or None where one is joined."""
    if epsilon is not None and delta is not None:
        return account_terms(unit or "record", epsilon, delta, filter_name, typical, allow_none)
    if account is None:
        missing = "--epsilon" if epsilon is None else "--delta"
        raise UsageError(f"{missing} is missing: a new account has both", "--epsilon E --delta D, or --account NAME")
    said = {"--epsilon": epsilon, "--delta": delta, "--unit": unit, "--filter": filter_name, "--typical": typical}
    given = [option for option, value in said.items() if value is not None] + ["--allow-none"] * allow_none
    if given:
        raise UsageError(
            f"{given[0]} opens an account, together with --epsilon and --delta; --account alone joins one",
            f"leave out {', '.join(given)}, or give --epsilon and --delta",
        )
    return None


def _real_path(path: Path) -> str:
    """Where the records really lie, symbolic links resolved: one file is one data set, whatever it is called."""
    try:
        real = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"--path {path}: cannot be found: {reason}", "--path with the file of the records") from None
    if not real.is_file():
        raise UsageError(f"--path {path}: not a file", "--path with the file of the records")
    return str(real)


def _tell_added(dataset: DeclaredDataset, account: Account, is_new: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(dataset) | {"account_opened": is_new}))
        return
    limit = f"epsilon {account.epsilon} {privacy_terms(account.unit, account.relation, account.delta)}"
    print(f"{'opened' if is_new else 'joined'} account {account.name}: {limit}, {account.filter} filter")
    print(f"declared data set {dataset.name}: {dataset.declared_size} records of task {dataset.task}, {dataset.path}")
    print(f"next: privet dataset check {dataset.name}")
