"""The rules of accounts and data sets, asked of the book itself, and raced for by processes."""

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from institution import guard, rows, submission
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.charge import charged_events
from privet.privacy.budget.filters import best_alpha
from privet.privacy.errors import BudgetError
from privet.privacy.home import Home

TERMS = AccountTerms("record", Decimal(10), Decimal("1e-4"))


@pytest.fixture
def book(tmp_path: Path) -> AccountBook:
    opened = Home(tmp_path / "home").create_book(None)
    opened.open_account("ward7", TERMS)
    return opened


def dataset(name: str = "ward7", path: str = "/data/a.csv", account: str = "ward7", size: int = 100) -> DeclaredDataset:
    return DeclaredDataset(name, "digits", path, size, account)


def test_second_data_set_on_the_same_path_in_another_account_is_refused(book: AccountBook) -> None:
    book.add_dataset(dataset())
    book.open_account("fresh", TERMS)
    with pytest.raises(BudgetError, match="belongs to account ward7 at unit record, for good"):
        book.add_dataset(dataset("again", account="fresh"))


def test_removed_data_set_does_not_come_back_with_a_fresh_budget(book: AccountBook) -> None:
    book.add_dataset(dataset())
    book.remove_dataset("ward7")
    with pytest.raises(BudgetError, match="belongs to account ward7"):
        book.open_with_dataset(TERMS, dataset("other", account="fresh"))
    assert "fresh" not in book.catch_up().accounts
    assert book.add_dataset(dataset("other")).account == "ward7"


def test_one_account_may_cover_several_data_sets_and_names_of_one_path(book: AccountBook) -> None:
    book.add_dataset(dataset())
    book.add_dataset(dataset("alias"))
    book.add_dataset(dataset("ward8", "/data/b.csv"))
    assert list(book.book.datasets) == ["ward7", "alias", "ward8"]


def test_same_path_may_stand_in_an_account_of_another_unit(book: AccountBook) -> None:
    book.add_dataset(dataset())
    stronger = AccountTerms("node", Decimal(1), Decimal("1e-6"))
    assert book.open_with_dataset(stronger, dataset("nodes", account="nodes")).account == "nodes"


def test_opening_with_a_refused_data_set_leaves_nothing_behind(book: AccountBook, tmp_path: Path) -> None:
    book.add_dataset(dataset())
    before = rows(tmp_path / "home")
    for refused in (dataset("other", account="fresh"), dataset("ward7", "/data/b.csv", "fresh"), dataset(size=0)):
        with pytest.raises(BudgetError):
            book.open_with_dataset(TERMS, refused)
    assert rows(tmp_path / "home") == before
    book.open_account("still-works", TERMS)  # the book in memory is in step with its ledger


@pytest.mark.parametrize("epsilon", ["10", "9", "0", "-1", "1000.1", "Infinity"])
def test_raise_states_a_larger_epsilon_only(book: AccountBook, epsilon: str) -> None:
    with pytest.raises(BudgetError, match="no larger one"):
        book.raise_account("ward7", Decimal(epsilon), "vote")
    assert book.catch_up().accounts["ward7"].epsilon == 10


@pytest.mark.parametrize("because", ["", "  ", "two\nlines", "x" * 1001, "\udcff"])
def test_reason_is_one_printable_line(book: AccountBook, because: str) -> None:
    with pytest.raises(BudgetError, match="printable"):
        book.raise_account("ward7", Decimal(11), because)
    with pytest.raises(BudgetError, match="printable"):
        book.close_account("ward7", because)


def test_closed_account_is_neither_raised_nor_closed_again(book: AccountBook) -> None:
    book.close_account("ward7", "study over")
    with pytest.raises(BudgetError, match="is closed"):
        book.raise_account("ward7", Decimal(11), "vote")
    with pytest.raises(BudgetError, match="is closed already"):
        book.close_account("ward7", "again")
    assert book.catch_up().accounts["ward7"].epsilon_left == 0


def test_account_is_opened_once(book: AccountBook) -> None:
    with pytest.raises(BudgetError, match="open already"):
        book.open_account("ward7", AccountTerms("record", Decimal(100), Decimal("1e-4")))
    assert book.catch_up().accounts["ward7"].epsilon == 10


@pytest.mark.parametrize("name", ["", "a/b", "../a", "A", "ä", "a b", "-a", "a" * 64, "a\n", ".", "\x00"])
def test_names_that_are_none_are_refused(book: AccountBook, name: str) -> None:
    with pytest.raises(BudgetError, match="a name has"):
        book.open_account(name, TERMS)
    with pytest.raises(BudgetError, match="a name has"):
        book.add_dataset(dataset(name))


@pytest.mark.parametrize(
    ("unit", "epsilon", "delta", "told"),
    [
        ("none", "1", "1e-5", "unit 'none' is not one of record, group, node"),
        ("record", "0", "1e-5", "epsilon 0"),
        ("record", "-1", "1e-5", "epsilon -1"),
        ("record", "1e400", "1e-5", "epsilon"),
        ("record", "Infinity", "1e-5", "epsilon Infinity"),
        ("record", "1", "0", "delta 0"),
        ("record", "1", "1", "delta 1"),
        ("record", "1", "2", "delta 2"),
        ("record", "1", "1e-400", "delta 1E-400"),
    ],
)
def test_terms_that_cannot_be_meant_are_refused_at_birth(unit: str, epsilon: str, delta: str, told: str) -> None:
    with pytest.raises(BudgetError, match=told):
        AccountTerms(unit, Decimal(epsilon), Decimal(delta))


@pytest.mark.parametrize("size", [0, -5, 2**40 + 1])
def test_declared_size_is_a_number_of_records(book: AccountBook, size: int) -> None:
    with pytest.raises(BudgetError, match="declared size"):
        book.add_dataset(dataset(size=size))


def test_renyi_account_takes_the_order_that_suits_its_typical_plan(book: AccountBook) -> None:
    asked = submission("r")
    assert asked.claim is not None
    events = charged_events(asked.plan, asked.claim.noise_multiplier)
    opened = book.open_account("many", AccountTerms("record", Decimal(10), Decimal("1e-4"), "renyi", events))
    assert opened.alpha == best_alpha(events, Decimal(10), Decimal("1e-4"))
    with pytest.raises(BudgetError, match="typical plan"):
        AccountTerms("record", Decimal(10), Decimal("1e-4"), "renyi")


def test_another_process_sees_what_was_opened(book: AccountBook, tmp_path: Path) -> None:
    book.add_dataset(dataset())
    other, _ = guard(tmp_path / "home")
    other.raise_account("ward7", Decimal(12), "vote")
    assert book.catch_up().accounts["ward7"].epsilon == 12


RACER = """
import sys
from decimal import Decimal
from pathlib import Path
from privet.privacy.budget.accounts import AccountTerms
from privet.privacy.errors import BudgetError
from privet.privacy.home import Home
for line in sys.stdin:
    try:
        book = Home(Path(line.strip())).create_book(None)
        book.open_account("ward7", AccountTerms("record", Decimal(10), Decimal("1e-4")))
        print("opened", flush=True)
    except BudgetError:
        print("refused", flush=True)
"""


def test_of_two_processes_that_open_an_account_exactly_one_wins(tmp_path: Path) -> None:
    """Twenty homes, each begun (key, ledger, account) by two warm processes at the same moment."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(2)
    ]
    try:
        for number in range(20):
            home = tmp_path / f"home-{number}"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{home}\n")
                racer.stdin.flush()
            told = sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout is not None)
            assert told == ["opened", "refused"], (number, told)
            assert [row[2] for row in rows(home)] == ["opened", "account"]
            assert {path.name for path in home.iterdir()} >= {"key.pem", "ledger.sqlite"}
            assert not list(home.glob(".key-*"))
    finally:
        for racer in racers:
            racer.communicate()


def test_step_that_fails_is_forgotten_in_memory_too(book: AccountBook) -> None:
    """What was read inside a transaction that is rolled back never happened; the next entry must still follow."""

    def interrupted() -> None:
        with book.transaction():
            book.ledger.append("raise", {"account": "ward7", "epsilon": "99", "from": "10", "because": "vote"})
            assert book.catch_up().accounts["ward7"].epsilon == 99
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert book.catch_up().accounts["ward7"].epsilon == 10
    assert book.raise_account("ward7", Decimal(11), "vote").epsilon == 11
