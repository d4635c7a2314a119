"""The teller: says where the institution's ledger stands, and hears what the server has witnessed of it.

A thread of its own, with its own connection: heads are read in the order in which answers are sent, whatever runs are
served beside one another, so they never go backwards.
"""

import json
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict

from ..privacy.budget.accounts import AccountBook
from ..privacy.budget.asked import Pending
from ..privacy.budget.guard import Guard
from ..privacy.budget.witness import Countersigned, head_text, read_countersigned
from ..privacy.channel import words
from ..privacy.errors import LedgerError, Refusal, RefusedError

_Result = TypeVar("_Result")


class Teller:
    """`open_book`: gives the institution's accounts, or None while nothing was declared. `name`: the node's."""

    def __init__(self, name: str, open_book: Callable[[], AccountBook | None]) -> None:
        self._name = name
        self._open_book = open_book
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teller")
        self._accounts: AccountBook | None = None
        self._countersigned: Countersigned | None = None

    @property
    def countersigned(self) -> str:
        """The newest head that the server has witnessed, as text; empty where there is none."""
        return head_text(self._countersigned) if self._countersigned else ""

    def hear(self, text: str) -> None:
        """What the server has witnessed last. Raises RefusedError where the ledger lacks it: it is an older copy."""
        if text:
            self._do(lambda: self._hear(text))

    def stamp(self, message: Message) -> Message:
        """An answer that brings the ledger's head, with the head as it is now."""
        if not message.has_error() and words.LEDGER in message.content:
            record = self._do(self._record)
            message.content = RecordDict({**message.content, words.LEDGER: record})
        return message

    def tasks(self) -> frozenset[str]:
        """The tasks of the data sets that are declared now."""
        return self._do(self._tasks)

    def asked(self) -> tuple[Hashable, tuple[tuple[Pending, tuple[str, ...]], ...]]:
        """What a person has changed (another value each time: approvals, limits), and what waits for one: with the
        roles that it lacks.
        """
        return self._do(self._asked)

    def close(self) -> None:
        """Keep the last countersignature in the ledger, and let go of it."""
        self._do(self._close)
        self._thread.shutdown()

    def _do(self, work: Callable[[], _Result]) -> _Result:
        return self._thread.submit(work).result()

    def _guard(self) -> Guard | None:
        if self._accounts is None:
            self._accounts = self._open_book()
        return Guard(self._accounts, "") if self._accounts else None  # of the ledger, whatever the data set

    def _hear(self, text: str) -> None:
        countersigned, guard = read_countersigned(text), self._guard()
        if guard is None:
            raise RefusedError(
                Refusal.LEDGER_BEHIND,
                f"the server witnessed entry {countersigned.head.sequence} of a ledger, and there is none here",
                "restore the ledger with its key from the backup, then privet budget recover",
            )
        guard.check_witnessed(countersigned)
        self._countersigned = countersigned

    def _tasks(self) -> frozenset[str]:
        if self._guard() is None or self._accounts is None:
            return frozenset()
        return frozenset(dataset.task for dataset in self._accounts.catch_up().datasets.values())

    def _asked(self) -> tuple[Hashable, tuple[tuple[Pending, tuple[str, ...]], ...]]:
        if self._guard() is None or self._accounts is None:
            return None, ()
        book = self._accounts.catch_up()
        asked, accounts = book.asked, book.accounts.values()
        limits = frozenset((account.name, account.epsilon, account.is_closed) for account in accounts)
        released = sum(run.is_released for run in book.runs.values())
        return (asked.count, limits, released), tuple((one, asked.missing(one)) for one in asked.waiting.values())

    def _record(self) -> ConfigRecord:
        guard = self._guard()
        if guard is None:
            raise LedgerError("there is no ledger, and an answer was made", "restore the ledger from its backup")
        head = guard.head(self._name)
        charges = guard.charges_after(self._countersigned.head.sequence if self._countersigned else 0)
        told = json.dumps([asdict(entry) for entry in charges])
        return ConfigRecord({words.HEAD: head_text(head), words.CHARGES: told})

    def _close(self) -> None:
        guard = self._guard() if self._countersigned else None
        if guard is not None and self._countersigned is not None:
            guard.keep_witnessed(self._countersigned)
        if self._accounts is not None:
            self._accounts.ledger.close()
