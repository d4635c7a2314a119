"""Runs that hide whole nodes, with fake nodes and a real ledger of the server's."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
from fake_nodes import FakeNode, grid_of, update_of
from flwr.app import MetricRecord, RecordDict
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.channel import words
from privet.privacy.submission import Submission
from privet.server.central import CentralRounds, Noise, seed_of, seeded_noise
from privet.server.central_federation import CentralFederation
from privet.server.central_ledger import CentralLedger
from privet.server.checkpoints import Checkpoints, State
from privet.simulations.grid import Fault
from signed_ledgers import DATASET, declared, opened

MOMENT = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "aggregation.fraction=0.5",
)
ADAPTIVE = (*CENTRAL, "privacy.target-quantile=0.5", "privacy.count-noise-stddev=2.0")
TERMS = AccountTerms("node", Decimal(100), Decimal("0.01"))


def book_of(path: Path, submission: Submission, nodes: int = 10, terms: AccountTerms = TERMS) -> CentralLedger:
    """The server's ledger at `path`, begun or continued, with the submission charged."""
    is_new = not path.exists()
    ledger = opened(path, owner="server")
    accounts = declared(ledger, terms, nodes) if is_new else AccountBook(ledger)
    book = CentralLedger(accounts, submission, DATASET)
    book.admit(MOMENT)
    return book


def answer_of(values: dict[str, np.ndarray], within: object = 1) -> RecordDict:
    """A node's answer, with its bit."""
    content = update_of(values)
    content[words.METRICS] = MetricRecord({words.DECLARED_SIZE: 10, words.WITHIN: within})  # type: ignore[dict-item]
    return content


def stepping(step: float, within: object = 1) -> Callable[[dict[str, np.ndarray], int, int], RecordDict]:
    """Training that adds `step` to every value."""
    return lambda model, number, attempt: answer_of({n: a + np.float32(step) for n, a in model.items()}, within)


def nodes_of(count: int, step: float = 0.1) -> list[FakeNode]:
    """So many nodes that all do the same."""
    return [FakeNode(f"n{number:02}", train=stepping(step)) for number in range(count)]


def run(
    submission: Submission,
    nodes: Sequence[FakeNode],
    folder: Path,
    *,
    noise: Noise | None = None,
    fault: Fault | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> State:
    """Carry it out, from its newest checkpoint where there is one; the last state."""
    book = book_of(folder / "server.sqlite", submission, len(nodes))
    try:
        rounds = CentralRounds(submission, book.nodes, book, noise or seeded_noise(seed_of(submission)))
        checkpoints = Checkpoints(folder / "checkpoints", submission.hash)
        initial = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}  # what fake nodes begin with
        return CentralFederation(
            submission, grid_of(nodes, fault), checkpoints, watch, central=rounds, initial=initial
        ).run()
    finally:
        book.close()
