"""The party behind a node's link: which run is served by what, and what the institution's orders say about it.

The rules:
1. Nothing is offered but declared data sets whose task is installed, and Flower apps that were allowed by name.
2. A paused node, or a run that the institution withdrew from, is answered with a code, whoever asks. Orders are looked
   at when a request comes, and again when its turn comes.
3. A ledger that lacks what the server has witnessed is an older copy: nothing is trained until it was recovered,
   whatever the server says later.
4. The first request of a run brings the signed submission; which data set serves it is looked up here, never sent.
5. Whenever the policy, the pins or what a person said is another, or the hour where a rule speaks of time, so is the
   presence's `revision`: a random word, so that the server can ask again, and learns no more than that.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.app import Message

from ..privacy.budget.accounts import AccountBook
from ..privacy.budget.asked import Pending
from ..privacy.budget.guard import Guard
from ..privacy.budget.ledger import system_clock
from ..privacy.channel.flower import run_number
from ..privacy.channel.member import Member
from ..privacy.errors import PrivetError, Refusal, RefusedError
from ..privacy.home import Home
from ..privacy.plan_app import AppSubmission
from ..privacy.policy.policy_file import PolicyFile
from ..privacy.signed import SignedSubmission
from .answers import Answers
from .app_run import AppRun
from .app_worker import AppReference, AppWorker
from .cohort import Peers
from .describer import Describer
from .link import Asked, Presence
from .node import Node
from .offers import Offers
from .operators import Operators
from .policy import NodePolicy, hour_that_decides
from .seat import Seat, Served, Work, refusal, refused
from .settings import AppSettings, HeldSettings, NodeSettings
from .state import Orders, read_orders
from .teller import Teller
from .trained_run import TrainedRun, is_description, named_submission, signed_submission, task_submission
from .worker import Workers, WorkerSettings

log = logging.getLogger("privet.node")

MOST_SEATS = 64  # as many as a server of ours has runs under way
_IDLE_SECONDS = 600.0  # a seat that nobody asks for so long gives its process and its memory back
_REVISION_BYTES = 8  # of a word that does not come again
_STATE_SECONDS = 12 * 3600.0  # and what an app keeps between rounds: Flower's messages live as long by default


class NodeParty:
    """What a node serves. See link.Party; the methods below are called from the link, and from the seats' threads."""

    def __init__(
        self, home: Home, member: Member, passphrase: bytes | None, show: Callable[[], None] = lambda: None
    ) -> None:
        self._home = home
        self._member = member
        self._passphrase = passphrase
        self._show = show
        self._held_settings = HeldSettings(home.settings)
        self.settings = self._held_settings.look()
        self.operators = Operators(
            member.root, member.identity.federation, lambda: self.settings.operators, home.root / "denied-keys.json"
        )
        self._policy_file = PolicyFile(home.policy)
        self.peers = Peers(member, lambda: self.settings.peers, self.operators.is_revoked)
        self._policy = NodePolicy(self._policy_file, lambda: self.settings)
        self._worker_settings = _worker_settings(self.settings, home.logs)
        self._workers = Workers(self._worker_settings)
        self._offers = Offers()
        self._teller = Teller(member.identity.name, self._open_book)
        self._describer = Describer(self._open_described)
        self._seats: dict[str, Seat] = {}
        self._used: dict[str, float] = {}
        self._packed: set[str] = set()
        self._app_runs: set[int] = set()  # by Flower's number: their answers are not ours to add to
        self._lock = threading.Lock()
        self._missing = ""  # what the server witnessed and the ledger lacks
        self._behind: RefusedError | None = None
        self.is_stopping = False  # what has begun is finished, and nothing else is taken up
        self._declared: frozenset[str] = frozenset()
        self._tasks: dict[str, str] = {}
        self.orders = Orders()
        self.pending: tuple[tuple[Pending, tuple[str, ...]], ...] = ()  # what waits for a person, and for which roles
        self._decided_by: tuple[object, ...] = ()
        self._revision = ""
        self.state, self.why, self.since = "connecting", "", time.time()
        self._offered: Presence | None = None
        self.look()

    # ---- see link.Party ----

    def presence(self) -> Presence:
        """What is offered now."""
        is_paused = self.orders.is_paused or self.is_stopping or self._behind is not None
        return Presence(is_paused, self._tasks, tuple(self.settings.apps), self._revision)

    def take(self, asked: Asked) -> None:
        """Give a request to its run's seat, or answer it with what the orders say."""
        try:
            self._check_orders(asked.run_id)
        except RefusedError as said:
            asked.answer(refused(asked.message, said, asked.run_id))
            return
        with self._lock:
            seat = self._seat(asked.run_id)
        if seat is None:
            many = refusal(Refusal.PAUSED, f"{MOST_SEATS} runs are served here, which is the most")
            asked.answer(refused(asked.message, many, asked.run_id))
        elif is_description(asked.message) and not seat.is_idle:
            self._describer.put(asked)
        else:
            seat.put(asked)

    def drop(self, ask_id: bytes) -> None:
        """Nobody waits for this answer; what has begun goes on, and its answer is kept."""
        for seat in list(self._seats.values()):
            seat.drop(ask_id)

    def welcomed(self, countersigned: str) -> None:
        """What the server has witnessed of the ledger."""
        if self._behind is not None and self._behind.code is Refusal.LEDGER_BEHIND and not self._hears(self._missing):
            return
        if countersigned:
            self._hears(countersigned)

    def _hears(self, countersigned: str) -> bool:
        """Whether the ledger holds this head. What is no head says nothing, or a server could stop the node with it."""
        try:
            self._teller.hear(countersigned)
            self._behind = None
        except RefusedError as behind:
            if self._behind is None:
                log.error("%s; try: %s", behind.message, behind.remedy)
            self._behind, self._missing = behind, countersigned
        except PrivetError as error:
            log.log(logging.DEBUG if self._behind else logging.ERROR, "%s; try: %s", error.message, error.remedy)
            return False
        return self._behind is None

    def packs(self, run_id: str) -> bool:
        """Whether the run's updates are values of half the bits, so that the other half need not be sent."""
        return run_id in self._packed

    def stamped(self, message: Message) -> Message:
        """The answer with the ledger's head as it is now."""
        return message if message.metadata.run_id in self._app_runs else self._teller.stamp(message)

    def deny(self, keys: frozenset[str]) -> None:
        """Listen to these operators' keys no more."""
        self.operators.deny(keys)

    def told(self, state: str, why: str = "") -> None:
        """How the connection stands."""
        if (state, why) != (self.state, self.why):
            self.state, self.why, self.since = state, why, time.time()
        self._show()

    # ---- what the node's own process asks ----

    def look(self) -> bool:
        """Read orders, settings and declarations anew; whether what is offered is other than at the last look."""
        self.orders = read_orders(self._home.orders)
        self.settings = self._held_settings.look()
        if self._behind is not None:
            self._hears(self._missing)  # it may have been recovered
        declared = self._teller.tasks()
        if declared != self._declared or self._offers.is_due:
            self._declared, self._tasks = declared, self._offers.versions(sorted(declared))
        for run_id in self.orders.withdrawn:
            if (seat := self._seats.get(run_id)) is not None:
                seat.cancel("the institution withdrew")
        self._revise()
        self._close_idle()
        before, self._offered = self._offered, self.presence()
        return self._offered != before

    def works(self) -> list[Work]:
        """What the seats are doing."""
        with self._lock:
            return [seat.work for seat in self._seats.values()]

    @property
    def is_behind(self) -> str:
        """Why nothing is trained, where the ledger is an older copy; else empty."""
        return self._behind.message if self._behind else ""

    def close(self, timeout: float) -> None:
        """End what runs: wait so long for what has begun, then end its process. Its attempt is spent."""
        with self._lock:
            seats, self._seats = dict(self._seats), {}
        end = time.monotonic() + timeout
        for seat in seats.values():
            seat.close(max(0.0, end - time.monotonic()))
            seat.cancel("the node stops")
        for seat in seats.values():
            seat.close(5.0)
        self._describer.close()
        self._workers.close()
        self._teller.close()

    # ---- its own ----

    def _revise(self) -> None:
        """Another revision where decisions may be other than at the last look."""
        said, pending = self._teller.asked()
        if pending != self.pending:
            self.pending = pending
            self._show()
        settings, rules = self.settings, self._policy_file.rules()
        hour = hour_that_decides(rules, settings, system_clock())
        decided_by = (rules.hash, hour, said, settings.operators, settings.peers, settings.policy)
        if decided_by != self._decided_by:
            self._decided_by, self._revision = decided_by, secrets.token_hex(_REVISION_BYTES)

    def _seat(self, run_id: str) -> Seat | None:
        """The run's seat, or a new one; None where there are too many: each is a thread, and any server may ask."""
        if run_id not in self._seats:
            if len(self._seats) >= MOST_SEATS and not self._give_one_up():
                return None
            check = partial(self._check_orders, run_id)
            self._seats[run_id] = Seat(run_id, self._open_served(run_id), self._show, check)
        self._used[run_id] = time.monotonic()
        return self._seats[run_id]

    def _check_orders(self, run_id: str) -> None:
        if self._behind is not None:
            raise self._behind
        if run_id in self.orders.withdrawn:
            raise refusal(Refusal.WITHDRAWN, f"the institution withdrew from run {run_id}")
        if self.orders.is_paused:
            raise refusal(Refusal.PAUSED, "the institution has paused its node")
        if self.is_stopping:
            raise refusal(Refusal.PAUSED, "the node stops")

    def _open_book(self) -> AccountBook | None:
        return self._home.open_book(self._passphrase) if self._home.has_ledger() else None

    def _open_served(self, run_id: str) -> Callable[[Message], Served]:
        """Makes what serves a run, from its first request."""

        def open_served(message: Message) -> Served:
            signed = signed_submission(message)
            submission = named_submission(signed, run_id)
            if isinstance(submission, AppSubmission):
                return self._app(submission, signed, message.metadata.dst_node_id)
            if submission.plan.aggregation.update_precision == "bfloat16":
                self._packed.add(run_id)
            return TrainedRun(self._node(submission.plan.dataset), self._workers, run_id, message, self._teller)

        return open_served

    def _open_described(self, run_id: str, message: Message) -> Node:
        """A node of its own, which only describes, with the checks that stand before every request."""
        self._check_orders(run_id)
        return self._node(task_submission(message, run_id).plan.dataset)

    def _node(self, dataset: str) -> Node:
        accounts = self._open_book()
        if accounts is None:
            raise RefusedError(Refusal.UNKNOWN_DATASET, "no data set was declared here", "privet dataset add")
        guard = Guard(accounts, dataset, self._policy)
        with contextlib.ExitStack() as opened:
            opened.callback(guard.close)
            source = Path(guard.dataset.path)
            opened.pop_all()
        return Node(
            name=self._member.identity.name,
            source=source,
            guard=guard,
            answers=Answers(self._home.answers),
            workshop=self._workers,
            operators=self.operators,
            company=self.peers,
        )

    def _app(self, submission: AppSubmission, signed: SignedSubmission, node_id: int) -> AppRun:
        name = submission.plan.app.name
        allowed = self._allowed(name)
        accounts = self._open_book()
        if accounts is None:
            raise RefusedError(
                Refusal.UNKNOWN_DATASET,
                "an app's run is entered in the ledger, and there is none",
                "privet dataset add",
            )

        def check() -> None:
            if self._allowed(name) != allowed:
                raise refusal(Refusal.APP_NOT_ALLOWED, f"what app {name} is, was changed here since the run began")
            self.operators.admit_app(accounts, submission, signed, system_clock(), self._policy)

        with contextlib.ExitStack() as opened:
            opened.callback(accounts.ledger.close)
            check()
            opened.pop_all()
        self._app_runs.add(run_number(submission.run_id))
        reference = AppReference(allowed.client_app, None, allowed.config)
        worker = AppWorker(reference, submission.run_id, node_id, submission.plan.app.config, self._worker_settings)
        return AppRun(worker, accounts, check)

    def _allowed(self, name: str) -> AppSettings:
        allowed = self.settings.apps.get(name)
        if allowed is None:
            raise RefusedError(
                Refusal.APP_NOT_ALLOWED,
                f"app {name} is not allowed here",
                f"privet node allow-app {name} MODULE:OBJECT",
            )
        return allowed

    def _close_idle(self) -> None:
        """Let seats that nobody asks rest, and close those that keep nothing, or have kept it long enough."""
        idle = self._idle_for(_IDLE_SECONDS)
        over = [run_id for run_id, (seat, seconds) in idle.items() if seat.rest() or seconds > _STATE_SECONDS]
        with self._lock:
            still = self._idle_for(_IDLE_SECONDS)
            closed = [self._seats.pop(run_id) for run_id in over if run_id in still]
        for seat in closed:
            seat.close()

    def _give_one_up(self) -> bool:
        """Close the seat that has rested longest, with what its app kept; False where none rests."""
        resting = self._idle_for(_IDLE_SECONDS)
        if not resting:
            return False
        run_id = max(resting, key=lambda one: resting[one][1])
        log.warning("run %s: what its app kept is let go, for others ask", run_id)
        self._seats.pop(run_id).close(0.0)  # its thread has nothing to do, and ends by itself
        return True

    def _idle_for(self, least: float) -> dict[str, tuple[Seat, float]]:
        """The seats that nobody has asked for so many seconds, and for how many."""
        now = time.monotonic()
        idle = {run_id: (seat, now - self._used[run_id]) for run_id, seat in list(self._seats.items()) if seat.is_idle}
        return {run_id: found for run_id, found in idle.items() if found[1] > least}


def _worker_settings(settings: NodeSettings, logs: Path) -> WorkerSettings:
    return WorkerSettings(logs, settings.node.device, settings.node.threads, memory_bytes=settings.node.memory_bytes)
