"""What the book of runs says: a run's state, what may follow it, the run itself and what happened to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..privacy.errors import PrivetError, RefusedError

LONGEST_TEXT = 2000  # characters of an error


class RunState(StrEnum):
    """Where a run is."""

    SUBMITTED = "submitted"
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


# To `submitted` leads what begins a run again: a restarted server for those that were under way, else an operator.
MAY_FOLLOW: Mapping[RunState, frozenset[RunState]] = {
    RunState.SUBMITTED: frozenset({RunState.WAITING, RunState.RUNNING, RunState.STOPPING, RunState.FAILED}),
    RunState.WAITING: frozenset({RunState.RUNNING, RunState.STOPPING, RunState.FAILED, RunState.SUBMITTED}),
    RunState.RUNNING: frozenset(
        {RunState.WAITING, RunState.FINISHED, RunState.STOPPING, RunState.FAILED, RunState.SUBMITTED}
    ),
    RunState.STOPPING: frozenset({RunState.STOPPED, RunState.FINISHED, RunState.FAILED}),
    RunState.STOPPED: frozenset({RunState.SUBMITTED}),
    RunState.FAILED: frozenset({RunState.SUBMITTED}),
    RunState.FINISHED: frozenset(),
}
ENDED = frozenset({RunState.STOPPED, RunState.FINISHED, RunState.FAILED})


@dataclass(frozen=True, slots=True)
class NewRun:
    """What the book says of a run from its first day on. `rounds`: None where the run counts none.

    `project`: None where it is of none.
    """

    run_id: str
    name: str
    kind: str
    operator: str
    rounds: int | None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed."""

    code: str
    text: str
    remedy: str

    @classmethod
    def of(cls, error: PrivetError) -> "RunError":
        """The error as the book tells it: a code, what happened, what to do."""
        code = (
            str(error.code) if isinstance(error, RefusedError) else type(error).__name__.removesuffix("Error").lower()
        )
        return cls(code, error.message[:LONGEST_TEXT], error.remedy[:LONGEST_TEXT])


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the book has it. Times are UTC. `standing`: what its kind of run keeps up to date, as JSON."""

    run_id: str
    name: str
    kind: str
    operator: str
    rounds: int | None
    state: RunState
    created: str
    started: str | None
    ended: str | None
    round: int
    error: RunError | None
    standing: dict[str, Any]
    events: int
    project: str | None = None

    @property
    def members(self) -> frozenset[str]:
        """The nodes whose update is in the model; of an app's run, all that took part.

        Of a run that was carried out before that was kept, those that were asked to train.
        """
        told = self.standing
        return frozenset(told.get("trained", told.get("participations", told.get("members", ()))))

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens unless somebody resumes it."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened to a run. Numbers of a run's events begin at 1 and have no gap."""

    number: int
    time: str
    kind: str
    body: dict[str, Any] = field(default_factory=dict)
