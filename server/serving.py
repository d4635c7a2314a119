"""The server, put together: two ports, the streams of nodes, the runs, and what keeps watch.

    main port        mutual TLS      Nodes, Control, Membership, health    every call through the gate
    enrolment port   TLS             Enrolment, health                     a token, or a signed nonce

It ends gracefully: runs keep their state and go on at the next start; nodes come back by themselves.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from flwr.app import ConfigRecord
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ..privacy.budget.keys import SigningKey
from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel import words
from ..privacy.channel.credentials import server_credentials
from ..privacy.channel.files import write_whole
from ..privacy.channel.frames import GRPC_OPTIONS
from ..privacy.channel.services import full_name
from ..privacy.errors import ChannelError
from ..privacy.metrics_page import MetricsPage
from ..privacy.plan_app import AnySubmission, AppSubmission
from ..privacy.policy.policy_file import PolicyFile
from ..privacy.signed import SignedSubmission, verified
from .app_names import APPS
from .app_run import AppRuns
from .control import Control, control_handler
from .database import open_database
from .decision_log import DecisionLog
from .descriptors import connection_options, raised_limit, shares
from .enrolment import OPTIONS as ENROLMENT_OPTIONS
from .enrolment import enrolment_handlers, membership_handlers
from .federation_home import FederationHome, ServerCertificate
from .fit import fit_for_app, fit_for_task, fit_permitted
from .gate import Gate, peer
from .grid import GridTerms, GrpcGrid
from .joins import Joins
from .link import GRACE_SECONDS, Hub, HubOptions
from .members import Members
from .metrics import CountedHub, Ends, ServerMetrics, Tally
from .node_list import NodeList
from .policy import HeldRules, ServerPolicy
from .projects import Projects
from .questions import Questions
from .registrar import Registrar
from .run_book import RunBook
from .run_folder import RunFolder
from .runs import APP, TRAINING, Runs
from .streams_service import streams_handlers
from .training_run import DEADLINE_SECONDS, TrainingRuns
from .witnesses import Witnesses

log = logging.getLogger("privet.server")

_LARGEST_ANSWER = 4 * 2**30  # bytes of arrays, where the request brings none to compare with
_STOP_SECONDS = 2.0  # for calls that are under way when the server stops
_TASK_VERSION = "task-version"
# A node has one stream and now and then a model; a program that opens more on one connection waits.
_CALLS = ("grpc.max_concurrent_streams", 100)
_ALONE = ("grpc.so_reuseport", 0)  # else a second server takes every other connection, and nobody notices


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What an operator of a server may set. `listen`: `HOST:PORT`; `grace`, `deadline`: seconds.

    `metrics`: where the page of metrics is, `[HOST:]PORT`; none where it is not given.
    """

    listen: str
    enrolment_listen: str
    database: str
    grace: float = GRACE_SECONDS
    deadline: float = DEADLINE_SECONDS
    metrics: str | None = None


class Server:
    """One federation's server. Make and use it inside an event loop."""

    def __init__(self, home: FederationHome, options: ServerOptions, clock: Clock = system_clock) -> None:
        self.home = home
        self.options = options
        engine = open_database(options.database)
        self.members = Members(engine)
        registrar = Registrar(home, self.members, clock)
        witnesses = Witnesses(home.folder / "witness", SigningKey.load_or_create(home.folder / "witness-key.pem"))
        self._tally, terms = Tally(), HubOptions(grace=options.grace)
        is_counted = options.metrics is not None
        self.hub = (
            CountedHub(self._tally, self.members, witnesses, terms)
            if is_counted
            else Hub(self.members, witnesses, terms)
        )
        book, self._projects = RunBook(engine), Projects(engine)
        self._rules, self._decisions = HeldRules(PolicyFile(home.policy)), DecisionLog(home.decisions)
        questions = Questions(home.facts.name, book, self.members, self._projects)
        policy = ServerPolicy(self._rules, questions, self._decisions, clock)
        self.gate = Gate(self.members, policy, self._tally.refuse)
        self.hub.tell_denied = self.gate.end_denied
        self.runs = Runs(
            book,
            self._folder_of,
            self._grid_of,
            carry_out={
                TRAINING: TrainingRuns(deadline=options.deadline),
                APP: AppRuns(home.folder / APPS),
            },
            check=self._check,
            clock=clock,
        )
        self._clock = clock
        self._root = home.root
        self._certificate = ServerCertificate(home, clock)
        self._health = health.aio.HealthServicer()
        nodes = NodeList(self.hub, self.members, witnesses)
        self._main = (
            streams_handlers(self.hub, peer, self.runs),
            control_handler(Control(self.runs, nodes, nodes, peer, policy.watching)),
            membership_handlers(registrar, clock),
        )
        self._enrolment = (enrolment_handlers(registrar, clock),)
        self._servers: list[grpc.aio.Server] = []
        self._watching: list[asyncio.Task[None]] = []
        self._page: MetricsPage | None = None

    @property
    def metrics_address(self) -> str:
        """Where the page of metrics is; empty where there is none."""
        return self._page.address if self._page else ""

    async def start(self) -> None:
        """Open both ports, and go on with the runs that were under way."""
        self._rules()  # which rules hold, or that none do, is in the log before anybody calls
        if self.options.metrics is not None:
            self._page = MetricsPage(self.options.metrics, self._metrics())
        members, strangers = shares(raised_limit())
        main = self._server(self._main, (*GRPC_OPTIONS, _CALLS, *connection_options(members)), [self.gate])
        enrolment = self._server(self._enrolment, (*ENROLMENT_OPTIONS, *connection_options(strangers)), [])
        presented = self._certificate.presented
        _bind(main, self.options.listen, server_credentials(presented))
        _bind(enrolment, self.options.enrolment_listen, server_credentials(presented, is_certificate_required=False))
        self._watching = [asyncio.create_task(self.hub.watch_denied())]
        for server in self._servers:
            await server.start()
        for service in ("", *(full_name(name) for name in ("Nodes", "Control", "Membership", "Enrolment"))):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await asyncio.to_thread(self.runs.start)

    async def stop(self) -> None:
        """End gracefully."""
        await self._health.enter_graceful_shutdown()
        await asyncio.to_thread(self.runs.close)
        await self.hub.close()
        if self._page is not None:
            await asyncio.to_thread(self._page.close)
        for task in self._watching:
            task.cancel()
        await asyncio.gather(
            *self._watching, *(server.stop(_STOP_SECONDS) for server in self._servers), return_exceptions=True
        )

    def _server(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        options: Sequence[tuple[str, Any]],
        interceptors: Sequence[Any],
    ) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=list(interceptors), options=[*options, _ALONE])
        server.add_generic_rpc_handlers(tuple(handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._servers.append(server)
        return server

    def _metrics(self) -> ServerMetrics:
        root = x509.load_pem_x509_certificate(self._root).not_valid_after_utc
        ends = Ends(lambda: self._certificate.not_after, self.home.issuing().not_after, root)
        return ServerMetrics(self.hub, self._tally, self.runs.book, ends)

    def _folder_of(self, run_id: str) -> RunFolder:
        return RunFolder(self.home.folder / "runs" / run_id)

    def _grid_of(self, submission: AnySubmission) -> GrpcGrid:
        run_id, folder = submission.run_id, self._folder_of(submission.run_id)
        joins = Joins(submission, self._rules, self._projects, self._decisions, self._clock)
        if isinstance(submission, AppSubmission):
            seal, fits = _seal(self.runs.book.signed(run_id)), fit_for_app(submission.plan.app.name)
            return GrpcGrid(self.hub, GridTerms(run_id, fit_permitted(fits, joins.denied), _LARGEST_ANSWER, seal=seal))
        kept = folder.root / _TASK_VERSION
        fit = fit_for_task(submission.plan.run.task, _kept(kept), lambda chosen: _keep(kept, chosen))
        return GrpcGrid(self.hub, GridTerms(run_id, fit_permitted(fit, joins.denied), _LARGEST_ANSWER))

    def _check(self, signed: SignedSubmission) -> None:
        operator = verified(signed, self._root, self.home.facts.name, self._clock())
        self.members.check_standing(operator.certificate)


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> None:
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise ChannelError(
            f"{address}: cannot be listened on", "see whether another server runs, or give --listen HOST:PORT"
        )


def _keep(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def _kept(path: Path) -> str | None:
    """What was kept; an empty file is what a crash has left, and says nothing."""
    return (path.read_text(encoding="utf-8") or None) if path.exists() else None


def _seal(signed: SignedSubmission) -> ConfigRecord:
    """The signed submission as it goes with each message of an app, whose own records know nothing of it."""
    return ConfigRecord(
        {
            words.SUBMISSION: signed.submission,
            words.SIGNATURE: signed.signature,
            words.CERTIFICATES: signed.certificates,
            words.BEGUN: secrets.token_hex(8),
        }
    )
