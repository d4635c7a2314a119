"""Simulated nodes: the very Node of a deployment, with a simulation's ledger and seeded noise."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from ..client.answers import Answers
from ..client.draw import Draw, public_draw
from ..client.node import Node, Workshop
from ..client.policy import NodePolicy
from ..client.settings import NodeSettings
from ..privacy.budget.accounts import AccountBook, AccountTerms
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.decisions import Cohort
from ..privacy.budget.guard import Attempt, Guard
from ..privacy.budget.keys import SigningKey
from ..privacy.budget.ledger import Ledger
from ..privacy.budget.open_ledgers import OpenLedgers
from ..privacy.budget.own_signatures import OwnSignatures
from ..privacy.plan import Plan
from ..privacy.policy.policy_file import PolicyFile
from ..privacy.submission import Submission
from .shelf import Shelf, ShelvedAnswers
from .world import World

# The one account of a simulated institution: all its records.
ACCOUNT = "records"
# Signatures: five a request, and a countersigned head comes back with the node's next request, rounds later. 15 MB.
REMEMBERED = 2**16


@dataclass(frozen=True, slots=True)
class Everybody:
    """The parties of a simulation: all of them take part, in this process, and nobody has to be shown."""

    count: int
    _cohort: Cohort = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cohort", Cohort(self.count, self.count, are_pinned=False))

    def attend(self, submission: Submission) -> None:
        """See node.Company."""

    def cohort(self, submission: Submission, told: bytes, now: datetime) -> Cohort:
        """See node.Company."""
        return self._cohort


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """Where simulated nodes keep what must last: ledgers with their keys, and the answers of one run.

    `policy`: the policy that every node asks; None where they ask none. `shelf`: where answers lie, if not in files.
    `own`: what the nodes' keys have signed in this process. `among`: how many of the ledgers have their files open.
    """

    ledgers: Path
    answers: Path
    policy: Path | None = None
    shelf: Shelf | None = None
    own: OwnSignatures = field(default_factory=lambda: OwnSignatures(REMEMBERED))
    among: OpenLedgers = field(default_factory=OpenLedgers)

    def answers_of(self, name: str) -> Answers:
        """Where a node's answers are kept; none survives a power cut, nor does a simulation's ledger."""
        folder = self.answers / name
        return ShelvedAnswers(folder, self.shelf) if self.shelf else Answers(folder, survives_power_cut=False)


def simulated_node(world: World, name: str, plan: Plan, folders: NodeFolders, workshop: Workshop) -> Node:
    """The node of one share, which declares its true size, with a ledger of its own."""
    at = folders.ledgers / f"{name}.sqlite"
    key = SigningKey.load_or_create(at.with_suffix(".pem"), own=folders.own, survives_power_cut=False)
    ledger = Ledger.open(at, purpose="simulation", owner=name, key=key, among=folders.among)
    accounts = AccountBook(ledger)
    _declare(accounts, world, name, plan)
    return Node(
        name=name,
        source=world.shares[name],
        guard=Guard(accounts, plan.dataset, _policy(folders)),
        answers=folders.answers_of(name),
        workshop=workshop,
        draws=lambda submission, attempt: simulated_draw(submission, attempt, name),
        company=Everybody(len(world.shares)),
    )


def _policy(folders: NodeFolders) -> NodePolicy | None:
    settings = NodeSettings()  # nobody is pinned, in the zone of this machine
    return NodePolicy(PolicyFile(folders.policy), lambda: settings) if folders.policy else None


def _declare(accounts: AccountBook, world: World, name: str, plan: Plan) -> None:
    """Open the account and declare the share, where a ledger that is continued does not have them."""
    book, size = accounts.book, len(world.shares[name].indices)
    share = DeclaredDataset(plan.dataset, world.task.name, f"simulated/{world.task.name}/{name}", size, ACCOUNT)
    if ACCOUNT not in book.accounts:
        accounts.open_with_dataset(_terms(world, plan), share)
    elif plan.dataset not in book.datasets:
        accounts.add_dataset(share)


def _terms(world: World, plan: Plan) -> AccountTerms:
    return AccountTerms(
        unit=plan.privacy.unit if plan.privacy.is_private else "record",
        epsilon=Decimal(repr(world.section.account_epsilon)),
        delta=Decimal(repr(world.section.account_delta)),
        allows_none=not plan.privacy.is_private,
    )


def simulated_draw(submission: Submission, attempt: Attempt, name: str) -> Draw:
    """Reproducible from the plan's seed, other for every node, stage, round and attempt. Protects nobody."""
    if submission.claim is None:
        return public_draw(submission, attempt, name)
    labels = ("simulated-noise", name, attempt.stage, attempt.round, attempt.number)
    return Draw(submission.plan.run.seed, labels)
