"""A simulated federation that hides whole nodes: one ledger, the server's, and nodes that have none.

Ten thousand nodes cost as many small objects. The data set is there once; a node's share is a list of places in it.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from ..client.central import CentralNode, Crowd
from ..client.draw import Draw
from ..client.node import Workshop
from ..privacy.budget.accounts import AccountBook, AccountTerms
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.guard import Attempt
from ..privacy.budget.keys import SigningKey
from ..privacy.budget.ledger import Ledger
from ..privacy.errors import BudgetError
from ..privacy.submission import Submission
from ..server.central import CentralRounds, seed_of, seeded_noise
from ..server.central_ledger import CentralLedger
from .world import World

# The server's one account: its population are the nodes.
OWNER, ACCOUNT = "server", "nodes"
LEDGER = "server.sqlite"  # among the ledgers of a simulation


def central_nodes(world: World, submission: Submission, workshop: Workshop) -> dict[str, CentralNode]:
    """The nodes by name. Each tells how many records it has, to nobody but the server, which does not use it."""
    dataset, task, seed = submission.plan.dataset, world.task.name, submission.plan.run.seed

    def draw(name: str, attempt: Attempt) -> Draw:
        return Draw(seed, ("simulated-node", name, attempt.stage, attempt.round))

    crowd = Crowd(submission, workshop, draw)
    return {
        name: CentralNode(name, crowd, share, DeclaredDataset(dataset, task, name, len(share.indices), ACCOUNT))
        for name, share in world.shares.items()
    }


def central_ledger(
    ledgers: Path, world: World, submission: Submission, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> CentralLedger:
    """The server's ledger with the run charged in full, begun or continued.

    Raises RefusedError where the account cannot pay, BudgetError where the ledger declares other nodes.
    """
    key = SigningKey.load_or_create(ledgers / "server.pem", survives_power_cut=False)
    ledger = Ledger.open(ledgers / LEDGER, purpose="simulation", owner=OWNER, key=key)
    accounts = AccountBook(ledger)
    try:
        _declare(accounts, world, submission, ledgers / LEDGER)
        opened = CentralLedger(accounts, submission, submission.plan.dataset)
        opened.admit(clock())
    except BaseException:
        ledger.close()
        raise
    return opened


def central_rounds(submission: Submission, world: World, ledger: CentralLedger) -> CentralRounds:
    """The rounds of the run, with seeded noise: a run that is resumed draws the same, one of another plan does not."""
    section = world.section.model_dump(mode="json", exclude={"account_epsilon", "account_delta"})
    seed = seed_of(submission, json.dumps(section, sort_keys=True))
    return CentralRounds(submission, ledger.nodes, ledger, seeded_noise(seed), seed)


def population_of(world: World) -> str:
    """Who the nodes are: SHA-256 of the records and of each node's share of them. Hexadecimal.

    An epsilon is spent by the same nodes, or it is none of theirs: runs that share an account must share these.
    """
    digest = hashlib.sha256(b"privet/nodes/v1\0")
    seen: set[int] = set()
    for name, share in world.shares.items():
        records = share.records
        if id(records) not in seen:
            seen.add(id(records))
            for tensor in (records.inputs, records.targets):
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}\0".encode())
                digest.update(tensor.contiguous().numpy().data)
        digest.update(f"{name}:{len(share.indices)}\0".encode())
        digest.update(share.indices.contiguous().numpy().data)
    return digest.hexdigest()


def _declare(accounts: AccountBook, world: World, submission: Submission, ledger: Path) -> None:
    """Open the account and declare the nodes, where a ledger that is continued does not have them."""
    name, task, path = submission.plan.dataset, world.task.name, f"simulated/{population_of(world)}"
    nodes = DeclaredDataset(name, task, path, len(world.shares), ACCOUNT)
    for declared in accounts.book.datasets.values():
        if declared.declared_size != nodes.declared_size:
            raise BudgetError(
                f"{ledger} declares {declared.declared_size} nodes, simulated are {nodes.declared_size}",
                "give other --ledgers, or simulate as many nodes as before",
            )
        if declared.path != path:
            raise BudgetError(
                f"{ledger} is of other nodes: of other records, or shared out in another way",
                "give other --ledgers, or the seed, data and partition that these were begun with",
            )
    if ACCOUNT not in accounts.book.accounts:
        section = world.section
        epsilon, delta = Decimal(repr(section.account_epsilon)), Decimal(repr(section.account_delta))
        accounts.open_with_dataset(AccountTerms(unit="node", epsilon=epsilon, delta=delta), nodes)
    elif name not in accounts.book.datasets:
        accounts.add_dataset(nodes)
