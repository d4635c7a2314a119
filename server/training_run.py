"""A training run at the server: the federation's story, told to the book round by round.

One durable event a round, however many nodes answer; each answer is mentioned to those who look on. A round stands in
the book once, whatever crashed: a run that goes on enters first what its checkpoint has and the book has not.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..privacy.submission import Submission
from .checkpoints import Checkpoints, RoundReport, State
from .events import Answered, Awaited, Evaluated, Happening, Missed, RollCalled, RoundBegun
from .federation import Federation
from .minds import GridMinds
from .replies import code_in
from .run_job import Job
from .run_record import RunState
from .witnesses import Witnesses

KIND = "training"
# A round's answers may take so long where the plan has no deadline; saying who one is takes no training.
DEADLINE_SECONDS = 3600.0
PATIENCE_SECONDS = 60.0
# After a restart of the server its nodes come back within so long, or are not waited for.
SETTLE_SECONDS = 10.0


class TrainingRuns:
    """Carries out training runs. `deadline`: seconds for a round's answers where the plan says nothing."""

    def __init__(self, witnesses: Witnesses | None = None, deadline: float = DEADLINE_SECONDS) -> None:
        self._witnesses = witnesses
        self._deadline = deadline

    def __call__(self, job: Job) -> Mapping[str, Any]:
        """Train to the last round and write the model. See run_job.CarryOut."""
        submission = job.submission
        assert isinstance(submission, Submission), "the kind of a submission is found before it is carried out"
        checkpoints = job.folder.checkpoints(submission)
        diary = _Diary(job)
        state = self._trained(job, submission, checkpoints, diary)
        digest = job.folder.write_model(submission, state)
        size = job.folder.model.stat().st_size
        return diary.standing(state) | {"model": {"sha256": digest, "bytes": size}}

    def _trained(self, job: Job, submission: Submission, checkpoints: Checkpoints, diary: "_Diary") -> State:
        newest = checkpoints.newest()
        if newest is not None and newest.round == submission.plan.run.rounds:  # a crash came after it
            diary.watch(newest)
            return newest
        known = set(newest.participations) - set(newest.excluded) if newest is not None else set[str]()
        del newest  # or its model would be held to the end
        diary.note_not_asked(submission.plan.aggregation.min_nodes)
        job.wait_for_nodes(submission.plan.aggregation.min_nodes)
        job.grid.wait_for_names(known, SETTLE_SECONDS)  # who took part before this start may be on its way back
        return Federation(
            submission,
            job.grid,
            checkpoints,
            diary.watch,
            self._witnesses,
            self._deadline,
            patience=min(PATIENCE_SECONDS, self._deadline),
            seal=job.signed,
            name_of=job.grid.name_of,
            tell=diary.note,
            muster=job.wait_again,
            minds=GridMinds(job.grid, submission.body),
        ).run()


@dataclass(slots=True)
class _Page:
    """What a round has brought so far."""

    began: float
    cohort: tuple[str, ...] = ()
    answers: dict[str, dict[str, float]] = field(default_factory=dict)


class _Diary:
    """What happens, from the federation to the book and to those who look on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        record = job.record()
        self._written = record.round
        self._standing = record.standing | {"waits_for": {}}
        self._before = record.standing.get("traffic", [0, 0])
        self._page = _Page(time.monotonic())
        if record.standing.get("waits_for"):  # for whom the process before this one waited
            job.tell("waits", {"nodes": {}}, standing=self._standing)

    def note(self, happening: Happening) -> None:
        """Something happened. See federation.Federation's `tell`."""
        match happening:
            case RollCalled(members, refused):
                self._call_roll({"members": list(members), "refused": dict(refused)})
            case Awaited(nodes):
                self._wait_for(dict(nodes))
            case RoundBegun(number, cohort):
                self._page = _Page(time.monotonic(), cohort)
                self._mention("round-begun", number, cohort=list(cohort))
            case Answered(number, node, size, seconds):
                self._page.answers[node] = {"bytes": size, "seconds": round(seconds, 3)}
                self._mention("answer", number, node=node, bytes=size, seconds=round(seconds, 3))
            case Missed(number, node, code, disclosed):
                self._mention("missed", number, node=node, code=code, disclosed=disclosed)
            case Evaluated(number, metrics):
                self._mention("evaluated", number, metrics=dict(metrics))

    def note_not_asked(self, least: int) -> None:
        """Where too few nodes are fit for the run, tell of those that are there and are not: a paused one, say."""
        if len(list(self._job.grid.get_node_ids())) < least:
            self._call_roll({})

    def watch(self, state: State) -> None:
        """A round is durable: enter it, and those before it that a crash kept from the book."""
        if state.round == 0:
            return
        for report in state.history:
            if report.round > self._written:
                self._enter(report, state)

    def standing(self, state: State) -> dict[str, Any]:
        """What the book keeps up to date: who takes part, how often, who was left out, bytes both ways."""
        sent, received = self._job.grid.traffic()
        self._standing |= {
            "participations": state.participations,
            "trained": list(state.trained),
            "excluded": state.excluded,
            "metrics": next((report.metrics for report in reversed(state.history) if report.metrics), {}),
            "traffic": [self._before[0] + sent, self._before[1] + received],
        }
        return self._standing

    def _call_roll(self, roll: dict[str, Any]) -> None:
        """Tell who takes part, who will not, and who is not asked: once, and again when that has changed.

        Another text beside the same code is no news: whoever sends it could fill the book.
        """
        roll["not_asked"] = dict(self._job.grid.notes())
        before = {key: self._standing.get(key) for key in roll}
        self._standing |= roll
        if _coded(roll) != _coded(before):
            self._job.tell("roll", roll, standing=self._standing)

    def _wait_for(self, nodes: dict[str, str]) -> None:
        """The run waits for these to change their minds, or goes on."""
        before = self._standing["waits_for"]
        self._standing["waits_for"] = nodes
        if _codes(nodes) == _codes(before):
            return
        self._job.tell("waits", {"nodes": nodes}, standing=self._standing)
        if bool(nodes) is not bool(before):
            self._job.move(RunState.WAITING if nodes else RunState.RUNNING)

    def _enter(self, report: RoundReport, state: State) -> None:
        told: dict[str, Any] = {
            "round": report.round,
            "answered": report.answered,
            "missing": report.failures,
            "metrics": report.metrics,
        }
        if report.round == state.round and self._page.answers:
            took = round(time.monotonic() - self._page.began, 3)
            told |= {"cohort": list(self._page.cohort), "answers": self._page.answers, "seconds": took}
        self._job.tell("round", told, round_number=report.round, standing=self.standing(state))
        self._written = report.round

    def _mention(self, kind: str, number: int, **body: Any) -> None:
        self._job.mention(kind, {"round": number, **body})


def _coded(roll: dict[str, Any]) -> dict[str, Any]:
    return roll | {"refused": _codes(roll.get("refused") or {})}


def _codes(refused: dict[str, str]) -> dict[str, str]:
    """By node, without what its institution lets be told beside the code."""
    return {name: code_in(text) for name, text in refused.items()}
