"""A simulated federation that hides whole nodes: one ledger, the server's, and nodes that have none.

Ten thousand nodes cost as many small objects. The data set is there once; a node's share is a list of places in it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from ..client.central import CentralNode, Crowd, Workshop
from ..client.draw import Draw
from ..privacy.budget.accounts import AccountBook, AccountTerms
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.guard import Attempt
from ..privacy.budget.keys import SigningKey
from ..privacy.budget.ledger import Ledger
from ..privacy.errors import BudgetError
from ..privacy.submission import Submission
from ..server.central import CentralRounds, seeded_noise
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

    Raises RefusedError where the account cannot pay, BudgetError where the ledger declares another number of nodes.
    """
    key = SigningKey.load_or_create(ledgers / "server.pem", survives_power_cut=False)
    ledger = Ledger.open(ledgers / LEDGER, purpose="simulation", owner=OWNER, key=key)
    accounts = AccountBook(ledger)
    try:
        _declare(accounts, world, submission)
        opened = CentralLedger(accounts, submission, submission.plan.dataset)
        if opened.nodes != len(world.shares):
            raise BudgetError(
                f"{ledgers / LEDGER} declares {opened.nodes} nodes, simulated are {len(world.shares)}",
                "give other --ledgers, or simulate as many nodes as before",
            )
        opened.admit(clock())
    except BaseException:
        ledger.close()
        raise
    return opened


def central_rounds(submission: Submission, ledger: CentralLedger) -> CentralRounds:
    """The rounds of the run, with seeded noise: a run that is resumed draws the same."""
    return CentralRounds(submission, ledger.nodes, ledger, seeded_noise(submission.plan.run.seed))


def _declare(accounts: AccountBook, world: World, submission: Submission) -> None:
    """Open the account and declare the nodes, where a ledger that is continued does not have them."""
    name, task = submission.plan.dataset, world.task.name
    nodes = DeclaredDataset(name, task, f"simulated/{task}/nodes", len(world.shares), ACCOUNT)
    if ACCOUNT not in accounts.book.accounts:
        section = world.section
        epsilon, delta = Decimal(repr(section.account_epsilon)), Decimal(repr(section.account_delta))
        accounts.open_with_dataset(AccountTerms(unit="node", epsilon=epsilon, delta=delta), nodes)
    elif name not in accounts.book.datasets:
        accounts.add_dataset(nodes)
