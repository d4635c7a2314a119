"""An institution in a temporary home: its files, its plans, and runs that a server would have asked for."""

import csv
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.guard import Attempt, Guard
from privet.privacy.home import Home
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import Submission, resolve
from sklearn.datasets import load_digits

NOW = datetime.now(UTC).replace(microsecond=0)
PLAN = """
[run]
name = "study"
task = "digits"
dataset = "ward7"
rounds = 3
spare-rounds = 1
[training]
learning-rate = 0.5
[privacy]
unit = "record"
noise-multiplier = 2.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.1
"""
UNCLAIMED = PLAN.split("[privacy]")[0] + '[privacy]\nunit = "none"\nsampling-rate = 0.1\n'
TERMS = ("--epsilon", "10", "--delta", "1e-4")


def write_digits(path: Path, records: int = 120) -> Path:
    """The first records of scikit-learn's digits, as a CSV."""
    pixels, labels = load_digits(return_X_y=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"pixel_{i}" for i in range(64)), "label"])
        rows.writerows([*map(int, row), int(label)] for row, label in zip(pixels[:records], labels, strict=False))
    return path


def write_plan(path: Path, *changes: tuple[str, str], text: str = PLAN) -> Path:
    """The plan in a file, with texts replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
    return path


def submission(
    run_id: str, text: str = PLAN, now: datetime = NOW, validity: timedelta = timedelta(days=30)
) -> Submission:
    """The plan, as a server submits it."""
    plan = parse_plan(text, "plan.toml")
    return resolve(plan, federation="test", run_id=run_id, operator="dr-who", now=now, validity=validity)


def guard(home: Path, dataset: str = "ward7") -> tuple[AccountBook, Guard]:
    """The institution's accounts, opened anew as another process would, and the guard of a data set."""
    accounts = Home(home).open_book(None)
    return accounts, Guard(accounts, dataset)


def begin(keeper: Guard, asked: Submission, round_number: int = 1) -> None:
    """Spend one training attempt, without answering it."""
    keeper.begin(asked, Attempt("train", round_number, 1, f"{round_number:064x}"))


def rows(home: Path) -> list[tuple[object, ...]]:
    """Every entry and snapshot in the ledger, as they stand."""
    connection = sqlite3.connect(home / "ledger.sqlite")
    try:
        found = list(connection.execute("SELECT * FROM entries ORDER BY sequence"))
        return found + list(connection.execute("SELECT * FROM snapshots"))
    finally:
        connection.close()
