"""The server's side of `privet policy`: what the server would decide, and what it has decided."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..privacy.budget.ledger import system_clock
from ..privacy.channel.identities import Role
from ..privacy.errors import PrivetError, UsageError
from ..privacy.home import Home
from ..privacy.plan_app import AnySubmission, AppPlan, AppSubmission, resolve_app
from ..privacy.plan_file import read_any_plan
from ..privacy.policy.check import Known
from ..privacy.policy.explain import Explained, explained
from ..privacy.policy.moments import moment_of
from ..privacy.policy.rules import Question, Rules
from ..privacy.policy.sides import Asked, Logged, LogReader, Report
from ..privacy.policy.terms import app_terms_of, terms_of
from ..privacy.policy.vocabulary import meant
from ..privacy.submission import resolve
from .decision_log import START, Line, as_line, read_decisions
from .federation_home import FEDERATION, FederationHome, is_federation, policy_mark

if TYPE_CHECKING:
    from .members import MemberRecord, Members
    from .projects import Projects

_ACTIONS = ("submit", "joinRun")
_RUN = "explain"  # the id of a run that there is not
_DATABASE = "PRIVET_DATABASE"


class ServerSide:
    """A server's policy."""

    name: Literal["server"] = "server"

    def is_at(self, home: Home) -> bool:
        """Whether there is a federation here."""
        return is_federation(home.root / FEDERATION)

    def policy(self, home: Home) -> Path:
        """The policy's file."""
        return FederationHome.load(home.root / FEDERATION).policy

    def needs_no_file(self, home: Home) -> bool:
        """A federation that was made before there were policies has none; one whose policy was taken away had one."""
        return not policy_mark(self.policy(home)).exists()

    def known(self, home: Home, passphrase: bytes | None) -> Known:
        """The federation's members and projects; nothing where the database cannot be asked."""
        with suppress(PrivetError):
            members, projects = _opened(home)
            names = {
                kind: frozenset(one.name for one in members.all() if one.role is role)
                for kind, role in (("Operator", Role.OPERATOR), ("Node", Role.NODE), ("Auditor", Role.AUDITOR))
            }
            return Known("server", names | {"Project": frozenset(one.name for one in projects.all())})
        return Known("server")

    def explain(self, home: Home, passphrase: bytes | None, rules: Rules, asked: Asked) -> Report:
        """What the server would decide on the plan now, and on each node that would join its run."""
        if asked.only and asked.only not in _ACTIONS:
            raise UsageError(f"--action {asked.only}: not asked for a plan; {meant(asked.only, _ACTIONS)}", "--action")
        members, projects = _opened(home)
        from .members import Standing

        now = system_clock().replace(microsecond=0)
        submission = _submission(asked, now)
        if not isinstance(submission, AppSubmission) and submission.plan.run.project:
            projects.check(submission.plan.run.project)
        standing = [one for one in members.all() if one.standing is Standing.MEMBER]
        operator = next((one for one in standing if one.name == asked.operator and one.role is Role.OPERATOR), None)
        key = asked.key or (operator.key_fingerprint if operator else "")
        nodes = [one for one in standing if one.role is Role.NODE]
        submitted = [_submit(rules, submission, asked, key, projects, now)] if asked.only != "joinRun" else []
        joins = list(_joins(rules, submission, nodes, projects, now)) if asked.only != "submit" else []
        return Report(
            f"plan {submission.plan.run.name}, for operator {asked.operator}",
            [*submitted, *joins],
            before="" if operator else f"operator {asked.operator} is no member of this federation",
            notes=["the server decides first; each institution's own policy decides for itself"],
            too_few=_too_few(submission, joins) if asked.only != "submit" else "",
        )

    def log(self, home: Home, passphrase: bytes | None) -> LogReader:
        """What the server has decided, as its log has it."""
        return _DecisionReader(FederationHome.load(home.root / FEDERATION).decisions)

    def pin(self, home: Home, operator: str, key: str) -> Sequence[str]:
        """Nothing is pinned at a server: it holds the authority that certifies keys."""
        raise UsageError("a server pins no keys", "privet invite --operator NAME")


class _DecisionReader:
    """Reads on in the log from where it was read last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = START

    def __call__(self) -> Iterable[Logged]:
        for line, place in read_decisions(self._path, self._seen):
            self._seen = place
            yield _logged(line)


def _logged(line: Line) -> Logged:
    rules = f"by {', '.join(line.get('rules', ()))}" if line.get("rules") else "by no rule"
    why = f"; error: {line['error']}" if line.get("error") else ""
    kind, _, name = str(line.get("resource", "")).partition("::")
    who, what = str(line.get("principal", "")).partition("::")[2], f"{kind.lower()} {name}".rstrip()
    when, verdict = str(line.get("time", "")), str(line.get("verdict", ""))
    policy = str(line.get("policy", ""))[:12]
    text = f"{when[:19]}Z  {who}  {line.get('action', '')} {what}  {verdict} {rules} (policy {policy}){why}"
    return Logged(when, name if kind == "Run" else "", as_line(text), verdict != "permitted", line)


def _submission(asked: Asked, now: datetime) -> AnySubmission:
    plan = read_any_plan(asked.plan, asked.overrides)
    if isinstance(plan, AppPlan):
        return resolve_app(plan, federation=_RUN, run_id=_RUN, operator=asked.operator, now=now)
    return resolve(plan, federation=_RUN, run_id=_RUN, operator=asked.operator, now=now)


def _submit(
    rules: Rules, submission: AnySubmission, asked: Asked, key: str, projects: "Projects", now: datetime
) -> tuple[str, Explained]:
    from .questions import TLS, principal_of, run_of

    context = {"time": moment_of(now, None), "transport": {"tls": TLS, "certificateAgeHours": 0}}
    operator = principal_of(Role.OPERATOR, asked.operator, key, projects.of(asked.operator))
    if isinstance(submission, AppSubmission):
        told = app_terms_of(submission)
        terms = {name: told[name] for name in ("name", "minNodes", "options")} | {"app": submission.plan.app.name}
        return "", explained(rules, Question(operator, "submitApp", run_of(submission), context | terms))
    plan = {"plan": terms_of(submission)}
    return "", explained(rules, Question(operator, "submit", run_of(submission), context | plan))


def _joins(
    rules: Rules, submission: AnySubmission, nodes: "Sequence[MemberRecord]", projects: "Projects", now: datetime
) -> Iterable[tuple[str, Explained]]:
    from .questions import principal_of, run_of

    of_nodes = projects.of_nodes()
    for node in nodes:
        principal = principal_of(Role.NODE, node.name, node.key_fingerprint, of_nodes.get(node.name, ()))
        question = Question(principal, "joinRun", run_of(submission), {"time": moment_of(now, None)})
        yield node.name, explained(rules, question)


def _too_few(submission: AnySubmission, joins: Sequence[tuple[str, Explained]]) -> str:
    """Why no round could be held, if every member were connected; empty where one could."""
    plan = submission.plan
    least = plan.app.min_nodes if isinstance(plan, AppPlan) else plan.aggregation.min_nodes
    count = sum(one.decision.is_permitted for _, one in joins)
    return f"{count} of {len(joins)} nodes may join, the plan asks for at least {least}" if count < least else ""


def _opened(home: Home) -> "tuple[Members, Projects]":
    from .database import open_database
    from .members import Members
    from .projects import Projects

    federation = FederationHome.load(home.root / FEDERATION)
    engine = open_database(os.environ.get(_DATABASE) or federation.database)
    return Members(engine), Projects(engine)
