"""Simulated nodes: the very Node of a deployment, with a simulation's ledger and seeded noise."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch

from ..client.answers import Answers
from ..client.node import Node, public_randomness
from ..client.probe import probe
from ..client.randomness import Randomness, SeededRandomness
from ..client.tasks.protocol import Source, Task
from ..client.training import LocalTrainer, TrainableModel
from ..privacy.budget.accounts import AccountBook, AccountTerms
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.guard import Attempt, Guard
from ..privacy.budget.keys import SigningKey
from ..privacy.budget.ledger import Ledger
from ..privacy.plan import Plan
from ..privacy.submission import Submission
from .world import World

# The one account of a simulated institution: all its records.
ACCOUNT = "records"


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """Where simulated nodes keep what must last: ledgers with their keys, and the answers of one run."""

    ledgers: Path
    answers: Path


class Bench:
    """Where all nodes of one process train, one after the other: the model is built and probed once for all of them."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._device = device
        self._models: dict[str, TrainableModel] = {}

    def trainable(self, submission: Submission) -> TrainableModel:
        """The submission's model; raise TaskError when it is unfit to be trained privately."""
        if submission.hash not in self._models:
            probe(self._task, submission.plan)
            self._models[submission.hash] = TrainableModel(self._task, submission.plan, self._device)
        return self._models[submission.hash]

    def trainer(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> LocalTrainer:
        """See node.Workshop."""
        return LocalTrainer(self.trainable(submission), submission, source, dataset.declared_size)


def simulated_node(world: World, name: str, plan: Plan, folders: NodeFolders, bench: Bench) -> Node:
    """The node of one share, which declares its true size, with a ledger of its own."""
    key = SigningKey.load_or_create(folders.ledgers / f"{name}.pem")
    ledger = Ledger.open(folders.ledgers / f"{name}.sqlite", purpose="simulation", owner=name, key=key)
    accounts = AccountBook(ledger)
    _declare(accounts, world, name, plan)
    return Node(
        name=name,
        source=world.shares[name],
        guard=Guard(accounts, plan.dataset),
        answers=Answers(folders.answers / name),
        workshop=bench.trainer,
        randomness=lambda submission, attempt: simulated_randomness(submission, attempt, name),
    )


def _declare(accounts: AccountBook, world: World, name: str, plan: Plan) -> None:
    """Open the account and declare the share, where a ledger that is continued does not have them."""
    if ACCOUNT not in accounts.book.accounts:
        section = world.section
        terms = AccountTerms(
            unit=plan.privacy.unit if plan.privacy.is_private else "record",
            epsilon=Decimal(repr(section.account_epsilon)),
            delta=Decimal(repr(section.account_delta)),
            allows_none=not plan.privacy.is_private,
        )
        accounts.open_account(ACCOUNT, terms)
    if plan.dataset not in accounts.book.datasets:
        size = len(world.shares[name].indices)
        path = f"simulated/{world.task.name}/{name}"
        accounts.add_dataset(DeclaredDataset(plan.dataset, world.task.name, path, size, ACCOUNT))


def simulated_randomness(submission: Submission, attempt: Attempt, name: str) -> Randomness:
    """Reproducible from the plan's seed, other for every node, stage, round and attempt. Protects nobody."""
    if submission.claim is None:
        return public_randomness(submission, attempt, name)
    seed = submission.plan.run.seed
    return SeededRandomness(seed, "simulated-noise", name, attempt.stage, attempt.round, attempt.number)
