"""Runs: carries out what was submitted, each run in a thread of its own, and goes on after a crash.

The rules:
1. A run is in the book before anything is done for it. What was under way when the process died is begun again by
   `start`; its checkpoint says where. Nothing is lost, and no round is done twice.
2. A run that an operator stops is `stopped`. One that ends because the server does keeps its state: the next start goes
   on with it.
3. A failure is told with a code and a text, and may be resumed. The text of what is not a PrivetError stays in the log.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..privacy.budget.guard import SERVERS_CLAIM
from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.errors import (
    FederationError,
    InterruptedRunError,
    PlanError,
    PrivetError,
    Refusal,
    RefusedError,
    UsageError,
)
from ..privacy.plan_app import AnySubmission, AppSubmission, submission_of
from ..privacy.signed import SignedSubmission
from ..privacy.submission import Submission
from .run_book import RunBook
from .run_folder import RunFolder
from .run_grid import RunGrid
from .run_job import CarryOut, Job, Standing
from .run_notices import Notices
from .run_record import NewRun, RunError, RunRecord, RunState
from .strategies import check_deployable

__all__ = ["APP", "TRAINING", "Check", "FolderOf", "GridOf", "RunGrid", "Runs"]

log = logging.getLogger("privet.server")

TRAINING, APP = "training", "app"
# Runs under way at once: each has a thread, and a model or two in memory.
MOST_RUNS = 64
# How long a graceful end waits for the threads: the longest step between two looks is a checkpoint's.
CLOSE_SECONDS = 60.0
_UNDER_WAY = (RunState.SUBMITTED, RunState.WAITING, RunState.RUNNING)

FolderOf = Callable[[str], RunFolder]
GridOf = Callable[[AnySubmission], RunGrid]
# Raises RefusedError for what no operator of this federation has signed.
Check = Callable[[SignedSubmission], object]


@dataclass(slots=True, eq=False)
class _Live:
    """A run under way in this process."""

    run_id: str
    grid: RunGrid | None = None
    is_stopping: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Runs:
    """The runs of a server. `carry_out`: by kind of submission. `check`: who may have signed."""

    def __init__(
        self,
        book: RunBook,
        folder_of: FolderOf,
        grid_of: GridOf,
        *,
        carry_out: Mapping[str, CarryOut],
        check: Check,
        clock: Clock = system_clock,
    ) -> None:
        self.book = book
        self.notices = Notices()
        self.folder_of = folder_of
        self._grid_of = grid_of
        self._carry_out = carry_out
        self._check = check
        self._clock = clock
        self._lock = threading.RLock()  # around every change of state and of what is alive
        self._alive: dict[str, _Live] = {}
        self._is_closing = False

    def start(self) -> None:
        """Go on with every run that was under way when the process before this one ended."""
        for record in self.book.records(RunState.STOPPING):
            self._move(record.run_id, RunState.STOPPED, {"by": "restart"})
        for record in self.book.records(*_UNDER_WAY):
            if record.state is not RunState.SUBMITTED:
                self._move(record.run_id, RunState.SUBMITTED, {"by": "restart"})
            self._begin(record.run_id)

    def submit(self, signed: SignedSubmission, operator: str) -> RunRecord:
        """Enter a submission and begin its run. The same submission again gives the run as it is.

        `operator`: who the channel says is asking. Raises RefusedError for a submission that is not this operator's, is
        not signed, is not valid now or takes another's run id; UsageError for one that cannot be carried out here.
        """
        submission = submission_of(signed.submission)
        if submission.body.operator != operator:
            raise RefusedError(
                Refusal.NOT_SIGNED,
                f"the submission is operator {submission.body.operator}'s, and {operator} hands it in",
                "submit with the identity that signed",
            )
        with self._lock:
            if not self._is_known(submission.run_id, signed):
                self._check_new(submission, signed)
                if self.book.add(_new_run(submission), signed):
                    log.info("run %s: submitted by operator %s", submission.run_id, operator)
                    self._begin(submission.run_id)
        return self.book.record(submission.run_id)

    def stop(self, run_id: str, by: str = "") -> RunRecord:
        """Ask a run to stop; what was done is kept. Raises UsageError where it has ended."""
        with self._lock:
            live = self._alive.get(run_id)
            record = self.book.record(run_id)
            if record.state is RunState.STOPPING:
                return record
            record = self._move(run_id, RunState.STOPPING, {"by": by})
            if live is None:  # its thread failed in a way that left no state behind
                return self._move(run_id, RunState.STOPPED)
            live.is_stopping = True
            if live.grid is not None:
                live.grid.stop()
        return record

    def resume(self, run_id: str, by: str = "") -> RunRecord:
        """Go on with a run that was stopped or has failed; raise UsageError where there is nothing to resume."""
        with self._lock:
            if run_id in self._alive:
                raise UsageError(f"run {run_id} is {self.book.record(run_id).state}", f"privet run show {run_id}")
            self._check_room()
            record = self._move(run_id, RunState.SUBMITTED, {"by": by})
            self._begin(run_id)
        return record

    def model_file(self, run_id: str) -> Path:
        """The file of the model that a finished run has trained; raise UsageError where there is none."""
        record = self.book.record(run_id)
        if record.kind == APP:
            raise UsageError(
                f"run {run_id} is an app's: privet has no model of it", "look where the app writes what it trained"
            )
        if "model" not in record.standing:
            raise UsageError(
                f"run {run_id} is {record.state}: it has no model yet", f"privet run logs {run_id} --follow"
            )
        return self.folder_of(run_id).model

    def model_of(self, run_id: str, node: str) -> Path:
        """The same for a node that has trained in the run; raise UsageError for any other."""
        if node not in self.book.record(run_id).members:
            raise UsageError(f"{node} has not trained in run {run_id}", "ask the coordinator for the model")
        return self.model_file(run_id)

    def wait(self, run_id: str, timeout: float | None = None) -> bool:
        """Whether the run is no longer under way in this process, after at most `timeout` seconds."""
        live = self._alive.get(run_id)
        return live is None or live.done.wait(timeout)

    def close(self) -> None:
        """End the threads, and leave every run's state as it is: the next start goes on."""
        with self._lock:
            self._is_closing = True
            alive = list(self._alive.values())
            for live in alive:
                if live.grid is not None:
                    live.grid.stop()
        for live in alive:
            if not live.done.wait(CLOSE_SECONDS):
                log.warning("run %s: its thread did not end in %g s", live.run_id, CLOSE_SECONDS)

    def _is_known(self, run_id: str, signed: SignedSubmission) -> bool:
        try:
            return self.book.signed(run_id).submission == signed.submission
        except UsageError:
            return False

    def _check_new(self, submission: AnySubmission, signed: SignedSubmission) -> None:
        self._check(signed)
        if not submission.body.is_valid_at(self._clock()):
            raise RefusedError(
                Refusal.NOT_VALID_NOW,
                f"run {submission.run_id} is valid from {submission.body.not_before} until {submission.body.expires}",
                "submit the plan again, and compare the clocks of both machines",
            )
        if _kind_of(submission) not in self._carry_out:
            raise UsageError(
                f"runs of kind {_kind_of(submission)} are not carried out here", "submit a plan with a task"
            )
        if isinstance(submission, Submission) and submission.plan.privacy.is_central:
            raise PlanError([SERVERS_CLAIM[0]], SERVERS_CLAIM[1])
        if isinstance(submission, Submission):
            check_deployable(submission.plan)
        self._check_room()

    def _check_room(self) -> None:
        if self._is_closing:
            raise FederationError("the server is stopping", "the same command when it runs again")
        if len(self._alive) >= MOST_RUNS:
            raise UsageError(f"{MOST_RUNS} runs are under way, which is the most", "privet run stop one of them")

    def _begin(self, run_id: str) -> None:
        with self._lock:
            live = self._alive[run_id] = _Live(run_id)
            threading.Thread(target=self._live, args=(live,), name=f"run-{run_id}", daemon=True).start()

    def _live(self, live: _Live) -> None:
        """The life of a run's thread. Its last deed is the run's last state: whoever sees that may resume the run."""
        try:
            standing = self._carried_out(live)
            self._end(live, RunState.FINISHED, standing=standing)
        except InterruptedRunError:
            self._end(live, RunState.STOPPED if live.is_stopping else None)
        except PrivetError as error:
            log.error("run %s failed: %s", live.run_id, error.message)
            self._end(live, RunState.FAILED, error=RunError.of(error))
        except Exception as error:
            log.exception("run %s failed", live.run_id)
            self._end(live, RunState.FAILED, error=_defect(error))

    def _carried_out(self, live: _Live) -> Standing:
        signed = self.book.signed(live.run_id)
        submission = submission_of(signed.submission)
        grid = self._grid_of(submission)
        try:
            with self._lock:
                live.grid = grid
                if live.is_stopping or self._is_closing:
                    grid.stop()
            folder = self.folder_of(live.run_id)
            move = partial(self._advance, live)
            job = Job(submission, signed, folder, grid, self.book, self.notices, move)
            standing = self._carry_out[_kind_of(submission)](job)
            if self.book.record(live.run_id).state in (RunState.SUBMITTED, RunState.WAITING):
                self._advance(live, RunState.RUNNING)
            return standing
        finally:
            grid.close()

    def _advance(self, live: _Live, state: RunState) -> RunRecord:
        """A step of a run that is not to stop."""
        with self._lock:
            if live.is_stopping or self._is_closing:
                raise InterruptedRunError(f"run {live.run_id} was stopped", f"privet run resume {live.run_id}")
            return self._move(live.run_id, state)

    def _end(
        self, live: _Live, state: RunState | None, *, error: RunError | None = None, standing: Standing | None = None
    ) -> None:
        """Enter the last state; none where the server ends, whose next start goes on with the run."""
        with self._lock:
            try:
                if state is not None and (state is RunState.FINISHED or not self._is_closing):
                    self._move(live.run_id, state, error=error, standing=standing)
                    log.info("run %s: %s", live.run_id, state)
            except PrivetError as failure:  # the next start goes on with it
                log.error("run %s: %s cannot be entered: %s", live.run_id, state, failure.message)
            finally:
                del self._alive[live.run_id]
                live.done.set()

    def _move(
        self,
        run_id: str,
        state: RunState,
        body: Mapping[str, str] | None = None,
        *,
        error: RunError | None = None,
        standing: Standing | None = None,
    ) -> RunRecord:
        record = self.book.move(run_id, state, body, error=error, standing=standing)
        self.notices.tell(run_id)
        return record


def _kind_of(submission: AnySubmission) -> str:
    return APP if isinstance(submission, AppSubmission) else TRAINING


def _new_run(submission: AnySubmission) -> NewRun:
    plan, kind, operator = submission.plan, _kind_of(submission), submission.body.operator
    if isinstance(submission, AppSubmission):
        return NewRun(submission.run_id, plan.run.name, kind, operator, None)
    run = submission.plan.run
    return NewRun(submission.run_id, run.name, kind, operator, run.rounds, run.project)


def _defect(error: Exception) -> RunError:
    """What an operator sees of an error that privet did not raise: its kind. Its text is in the server's log."""
    return RunError("defect", f"a defect in the server: {type(error).__name__}", "see the server's log, and report it")
