"""A server's policy over facts in memory: the rules that ship, or others, and a log that may be read."""

from collections.abc import Callable, Mapping
from pathlib import Path

from privet.privacy.budget.ledger import Clock, system_clock
from privet.privacy.errors import UsageError
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import Rules
from privet.server.decision_log import DecisionLog
from privet.server.policy import ServerPolicy
from privet.server.questions import Questions
from privet.server.run_record import RunRecord, RunState

SHIPPED = Rules(default_policy("server"))


class Facts:
    """Runs, keys and projects, as the database would have them. `projects`: their members."""

    def __init__(
        self, runs: Mapping[str, RunRecord] | None = None, projects: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.runs = dict(runs or {})
        self.projects = dict(projects or {})

    def record(self, run_id: str) -> RunRecord:
        if run_id not in self.runs:
            raise UsageError(f"no run {run_id}", "privet run list")
        return self.runs[run_id]

    def records(self) -> list[RunRecord]:
        return list(self.runs.values())

    def key_of(self, name: str) -> str:
        return f"key of {name}"

    def of(self, name: str) -> tuple[str, ...]:
        return tuple(project for project, members in self.projects.items() if name in members)

    def of_nodes(self) -> Mapping[str, tuple[str, ...]]:
        names = {name for members in self.projects.values() for name in members}
        return {name: self.of(name) for name in names}

    def check(self, name: str) -> None:
        if name not in self.projects:
            raise UsageError(f"there is no project {name}", "privet federation project list")


def shipped_policy(
    federation: str = "hearts",
    facts: Facts | None = None,
    log: Path = Path("/dev/null"),
    rules: Callable[[], Rules] = lambda: SHIPPED,
    clock: Clock = system_clock,
) -> ServerPolicy:
    """The policy of a server in this federation."""
    known = facts or Facts()
    return ServerPolicy(rules, Questions(federation, known, known, known), DecisionLog(log), clock)


def a_run(run_id: str, project: str | None = None, members: tuple[str, ...] = (), operator: str = "alice") -> RunRecord:
    """A run under way."""
    return RunRecord(
        run_id=run_id,
        name="digits",
        kind="training",
        operator=operator,
        rounds=4,
        state=RunState.RUNNING,
        created="2027-06-30T12:00:00.000Z",
        started=None,
        ended=None,
        round=1,
        error=None,
        standing={"members": list(members), "participations": dict.fromkeys(members, 1)},
        events=3,
        project=project,
    )
