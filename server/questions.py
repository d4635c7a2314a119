"""Questions: what the policy is asked for each call at the main port: who calls, to do what, with what.

The rules:
1. A method that does not stand in `METHODS` is closed. A test holds it against every method of every service.
2. The principal is whom TLS has shown, by name and key; its projects are those that the coordinator put it in.
3. What is wrong with a request is told only to one who may ask it. So a run that there is not, and one of a project
   that there is not, is asked about as a run without project and members; a submission that cannot be read, as one of
   an app without a name. A permission then brings the reason, and a denial no more than any other.
4. What a caller made up and no run or node can be called is asked about as one without a name: rules see it, the log
   keeps it, and a terminal shows it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from ..privacy.channel.credentials import Peer
from ..privacy.channel.identities import Role
from ..privacy.errors import ChannelError, PrivetError, UsageError
from ..privacy.plan import NAME_PATTERN
from ..privacy.plan_app import AnySubmission, AppSubmission, submission_of
from ..privacy.policy.moments import moment_of
from ..privacy.policy.rules import Entity, Question, Uid
from ..privacy.policy.terms import app_terms_of, terms_of
from .run_record import RunRecord, RunState

TLS = 13  # the channel speaks no other (privacy/channel/credentials.py)
_SHOWN = 64  # characters of a name that a caller made up
_KINDS = {Role.OPERATOR: "Operator", Role.NODE: "Node", Role.AUDITOR: "Auditor"}
_NODES = frozenset({Role.NODE})


class RunFacts(Protocol):
    """What is known of runs: see run_book.py."""

    def record(self, run_id: str) -> RunRecord:
        """One run; raise UsageError where there is none of that id."""
        ...

    def records(self) -> Sequence[RunRecord]:
        """The newest runs."""
        ...


class KeyFacts(Protocol):
    """What is known of members: see members.py."""

    def key_of(self, name: str) -> str:
        """The fingerprint of a member's newest key; empty for one that is not known."""
        ...


class ProjectFacts(Protocol):
    """What is known of projects: see projects.py."""

    def of(self, name: str) -> tuple[str, ...]:
        """The projects that a member belongs to."""
        ...

    def check(self, name: str) -> None:
        """Raise UsageError, naming the nearest, where there is no project of that name."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as the policy is asked about it. `deed`: as people call it. `problem`: told where it is permitted.

    `unknown_run`: the run that there is not, where that is the problem.
    """

    question: Question
    deed: str
    problem: PrivetError | None = None
    unknown_run: str = ""


@dataclass(frozen=True, slots=True)
class _About:
    """What a request is about. `action`: where it is not the method's own."""

    resource: Entity
    name: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    problem: PrivetError | None = None
    action: str = ""
    unknown_run: str = ""


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its action in the schema, the words for it, what a request is about, and whose service it is."""

    action: str
    deed: str
    about: "Callable[[Questions, Any, Peer], _About]"
    callers: frozenset[Role] = frozenset(_KINDS)


class Questions:
    """Makes questions of calls. Its methods read the database: never call them in an event loop."""

    def __init__(self, federation: str, runs: RunFacts, keys: KeyFacts, projects: ProjectFacts) -> None:
        self.federation = Entity(("Federation", federation))
        self.runs = runs
        self.keys = keys
        self.projects = projects

    def of_call(self, peer: Peer, method: str, request: Any, now: datetime) -> Asked:
        """What the policy is asked about a call; raise ChannelError for a method that is closed to the caller."""
        found = METHODS.get(method)
        if found is None or peer.identity.role not in found.callers:
            raise ChannelError(f"{peer.identity.uri} may not call {method}", "ask the coordinator for that role")
        about = found.about(self, request, peer)
        context = {**about.context, **_circumstances(peer, now)}
        question = Question(self._principal(peer), about.action or found.action, about.resource, context)
        return Asked(question, f"{found.deed} {about.name}".rstrip(), about.problem, about.unknown_run)

    def of_watching(self, peer: Peer, now: datetime) -> Callable[[RunRecord], Question]:
        """What the policy is asked about a run that would be shown to the peer."""
        principal, context = self._principal(peer), _circumstances(peer, now)
        return lambda record: Question(principal, "watch", entity_of(record), context)

    def _principal(self, peer: Peer) -> Entity:
        name, role = peer.identity.name, peer.identity.role
        within = () if role is Role.AUDITOR else self.projects.of(name)  # the schema has no auditors in projects
        return principal_of(role, name, peer.key_fingerprint, within)


def principal_of(role: Role, name: str, key: str, projects: tuple[str, ...]) -> Entity:
    """A member as the schema has it. At a server no key is pinned: it holds the authority that certifies them."""
    pinned = {"isPinned": False} if role is Role.OPERATOR else {}
    return Entity((_KINDS[role], name), {"key": key, **pinned}, tuple(map(_project, projects)))


def run_of(submission: AnySubmission) -> Entity:
    """A run that was just submitted: it has no members yet."""
    project = None if isinstance(submission, AppSubmission) else submission.plan.run.project
    return _run(submission.run_id, submission.body.operator, project, RunState.SUBMITTED)


def entity_of(record: RunRecord) -> Entity:
    """A run as the book has it."""
    return _run(record.run_id, record.operator, record.project, record.state, record.members)


def _run(run_id: str, operator: str, project: str | None, state: str, members: frozenset[str] = frozenset()) -> Entity:
    attributes = {
        "operator": _reference(("Operator", operator)),
        "state": str(state),
        "members": [_reference(("Node", name)) for name in sorted(members)],
    }
    if not project:
        return Entity(("Run", run_id), attributes)
    return Entity(("Run", run_id), attributes | {"project": _reference(_project(project))}, (_project(project),))


def _about_federation(questions: Questions, _: object, peer: Peer) -> _About:
    return _About(questions.federation)


def _about_run(questions: Questions, request: Any, peer: Peer) -> _About:
    run_id = str(request.run_id)
    try:
        record = questions.runs.record(run_id)
    except UsageError as error:
        nothing = _run(_name_of(run_id), "", None, "unknown")
        return _About(nothing, f"run {run_id[:_SHOWN]!r}", problem=error, unknown_run=run_id)
    return _About(entity_of(record), f"run {run_id}")


def _about_submission(questions: Questions, request: Any, peer: Peer) -> _About:
    try:
        submission = submission_of(request.submission)
    except UsageError as error:
        nothing = _run("", peer.identity.name, None, "unknown")
        return _About(nothing, "what it sent", _app_context("", "", 0, ()), error, "submitApp")
    name = f"run {submission.run_id}"
    if isinstance(submission, AppSubmission):
        plan, told = submission.plan, app_terms_of(submission)
        context = _app_context(plan.app.name, plan.run.name, told["minNodes"], told["options"])
        return _About(run_of(submission), name, context, action="submitApp")
    run, context, project = run_of(submission), {"plan": terms_of(submission)}, submission.plan.run.project
    try:
        if project is not None:
            questions.projects.check(project)
    except UsageError as error:
        run = _run(submission.run_id, submission.body.operator, None, RunState.SUBMITTED)
        return _About(run, name, context, error)
    return _About(run, name, context)


def _about_node(questions: Questions, request: Any, peer: Peer) -> _About:
    told = str(request.node)
    name = _name_of(told)
    node = principal_of(Role.NODE, name, questions.keys.key_of(name), questions.projects.of(name))
    return _About(node, f"of node {told[:_SHOWN]!r}")


def _name_of(told: str) -> str:
    """What a caller calls something; empty where nothing can be called so."""
    return told if re.fullmatch(NAME_PATTERN, told, re.ASCII) else ""


def _app_context(app: str, name: str, least: int, options: Any) -> Mapping[str, Any]:
    return {"app": app, "name": name, "minNodes": least, "options": list(options)}


def _circumstances(peer: Peer, now: datetime) -> Mapping[str, Any]:
    """The context of every call."""
    return {"time": moment_of(now, None), "transport": {"tls": TLS, "certificateAgeHours": _age(peer, now)}}


def _age(peer: Peer, now: datetime) -> int:
    """Hours since the certificate began."""
    return max(0, int((now - peer.not_before).total_seconds() // 3600))


def _project(name: str) -> Uid:
    return ("Project", name)


def _reference(uid: Uid) -> Mapping[str, Any]:
    return {"__entity": {"type": uid[0], "id": uid[1]}}


# Which question each method is.
METHODS: Mapping[str, Method] = {
    "/privet.v1.Nodes/Connect": Method("connect", "connect", _about_federation, _NODES),
    "/privet.v1.Nodes/Model": Method("takeModel", "take the model of", _about_run, _NODES),
    "/privet.v1.Control/Submit": Method("submit", "submit", _about_submission),
    "/privet.v1.Control/Runs": Method("listRuns", "list the runs", _about_federation),
    "/privet.v1.Control/Run": Method("watch", "watch", _about_run),
    "/privet.v1.Control/Watch": Method("watch", "watch", _about_run),
    "/privet.v1.Control/Stop": Method("stop", "stop", _about_run),
    "/privet.v1.Control/Resume": Method("resume", "resume", _about_run),
    "/privet.v1.Control/Model": Method("takeModel", "take the model of", _about_run),
    "/privet.v1.Control/ListNodes": Method("listNodes", "list the nodes", _about_federation),
    "/privet.v1.Control/Witness": Method("readLedger", "read the witnessed ledger", _about_node),
    "/privet.v1.Membership/Renew": Method("renew", "renew its certificate", _about_federation),
    "/privet.v1.Membership/Leave": Method("leave", "leave", _about_federation),
    "/grpc.health.v1.Health/Check": Method("checkHealth", "ask whether the server serves", _about_federation),
    "/grpc.health.v1.Health/Watch": Method("checkHealth", "ask whether the server serves", _about_federation),
}
