"""Which of the connected nodes the server's policy lets join a run: the action joinRun.

It is asked whenever nodes come and go, so a decision is kept as long as nothing it rests on has changed: the rules, the
node's key and its projects, and the minute where the rules speak of time. A run is shown as it was submitted: nobody is
its member yet. A decision is entered in the log when it is another than before.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel.identities import Role
from ..privacy.errors import DatabaseError
from ..privacy.plan_app import AnySubmission
from ..privacy.policy.moments import moment_of
from ..privacy.policy.rules import Decision, Question, Rules
from .decision_log import DecisionLog
from .policy import why
from .questions import principal_of, run_of
from .stream import NodeView

log = logging.getLogger("privet.server")

_Node = tuple[str, str, tuple[str, ...]]  # its name, its key, its projects


class NodeProjects(Protocol):
    """What is known of projects: see projects.py."""

    def of_nodes(self) -> Mapping[str, tuple[str, ...]]:
        """The projects of each node that belongs to any."""
        ...


class Joins:
    """What the policy says of nodes and one run."""

    def __init__(
        self,
        submission: AnySubmission,
        rules: Callable[[], Rules],
        projects: NodeProjects,
        decisions: DecisionLog,
        clock: Clock = system_clock,
    ) -> None:
        self._run = run_of(submission)
        self._rules = rules
        self._projects = projects
        self._decisions = decisions
        self._clock = clock
        self._as_of: object = None
        self._kept: dict[_Node, str] = {}
        self._entered: dict[_Node, Decision] = {}
        self._seen: Mapping[str, tuple[str, ...]] | None = None

    def denied(self, nodes: Iterable[NodeView]) -> dict[str, str]:
        """The nodes that may not join, and why."""
        rules, moment, projects = self._rules(), moment_of(self._clock(), None), self._projects_now()
        as_of = (rules.hash, *(moment.values() if _may_speak_of_time(rules) else ()))
        if as_of != self._as_of:
            self._kept, self._as_of = {}, as_of
        found = {}
        for node in nodes:
            asked = (node.name, node.key_fingerprint, projects.get(node.name, ()))
            if asked not in self._kept:
                self._kept[asked] = self._why_not(rules, asked, moment)
            if reason := self._kept[asked]:
                found[node.name] = reason
        return found

    def _why_not(self, rules: Rules, node: _Node, moment: Mapping[str, object]) -> str:
        question = Question(principal_of(Role.NODE, *node), "joinRun", self._run, {"time": moment})
        decision = rules.decide(question)
        if self._entered.get(node) != decision:
            self._decisions.enter(question, decision, self._clock())
            self._entered[node] = decision
        return "" if decision.is_permitted else f"the server's policy: {why(rules, decision)}"

    def _projects_now(self) -> Mapping[str, tuple[str, ...]]:
        """As they are; where the database is away, as they were: a run that waits for nodes outlives that."""
        try:
            self._seen = self._projects.of_nodes()
        except DatabaseError as error:
            if self._seen is None:
                raise
            log.warning("projects as they were: %s", error.message)
        return self._seen


def _may_speak_of_time(rules: Rules) -> bool:
    """Whether time may matter: a rule that reads it names it, or escapes the name."""
    return "time" in rules.text or "\\" in rules.text
