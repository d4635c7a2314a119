"""Node: the story of a request inside an institution, from top to bottom.

    receive -> is it ours? -> who signed it? -> is it whole? -> is our ledger the newest?
            -> policy, charge -> policy, begin -> train -> policy, keep -> answer

Nothing before `begin` touches a record. What leaves is an Answer, or one code of a closed list; why a request was
refused or failed stays in the local log and ledger.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ..privacy.attendance import Attendance
from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.decisions import Cohort
from ..privacy.budget.guard import SERVERS_CLAIM, Attempt, Guard, Standing
from ..privacy.budget.ledger import Clock, Entry, system_clock
from ..privacy.budget.signer import Signer
from ..privacy.budget.witness import Countersigned, Head
from ..privacy.errors import ChannelError, LedgerError, PrivetError, Refusal, RefusedError
from ..privacy.parameters import Array, Parameters, hash_of, problem_of
from ..privacy.signed import SignedSubmission
from ..privacy.submission import Submission
from .answers import Answer, Answers
from .draw import SYSTEM, Draw, public_draw
from .operators import Operators

if TYPE_CHECKING:  # what trains imports torch; this process need not
    from .tasks.protocol import Source

_Result = TypeVar("_Result")

log = logging.getLogger("privet.node")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a server asks of a node; `parameters` to train and to evaluate. `witnessed`: the head it countersigned last.

    `signature`, `certificates`: of the operator, over `submission`; empty in a simulation. `cohort`: with whom, and
    what shows that they take part (cohort.py); empty where the server says nothing. `clip_norm`: to what the whole
    update is clipped, where whole nodes are hidden (central.py); else None.
    """

    stage: Literal["describe", "initial", "train", "evaluate"]
    submission: bytes
    round: int
    attempt: int
    parameters: Parameters
    witnessed: Countersigned | None = None
    signature: bytes = b""
    certificates: bytes = b""
    cohort: bytes = b""
    clip_norm: float | None = field(default=None, kw_only=True)
    _attempts: list[tuple[Submission, Attempt]] = field(default_factory=list, init=False, repr=False, compare=False)

    def attempt_of(self, submission: Submission) -> Attempt:
        """What is to begin once. Of a request that several nodes of one process share, it is hashed once."""
        if not self._attempts or self._attempts[-1][0] is not submission:
            self._attempts[:] = [(submission, _attempt(self, submission))]
        return self._attempts[-1][1]


class Trainer(Protocol):
    """Carries out a submission on one data set; it reads records only in `train` and `evaluate`."""

    def initial(self) -> dict[str, Array]:
        """The model that the task and the public seed give."""
        ...

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        """The parameters after a round of local training."""
        ...

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        """Sums of metrics over records."""
        ...

    def done(self) -> Mapping[str, str]:
        """What the last call really did and with what, for the ledger: noise multiplier, steps, code, versions."""
        ...


class Company(Protocol):
    """The other parties: with whom a node trains, as far as it can tell. See cohort.Peers."""

    def attend(self, submission: Submission) -> Attendance | None:
        """What shows the others that this node takes part; None where nobody needs to be shown."""
        ...

    def cohort(self, submission: Submission, told: bytes, now: datetime) -> Cohort:
        """Who takes part; raises ChannelError where what the server told is no list."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """An attempt that is spent and not yet carried out."""

    request: Request
    submission: Submission
    attempt: Attempt
    cohort: Cohort
    trainer: Trainer
    draw: Draw


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What an attempt gave, and what was really done for it, as Trainer.done tells it."""

    answer: Answer
    done: Mapping[str, str]


Workshop = Callable[[Submission, DeclaredDataset, "Source"], Trainer]
Draws = Callable[[Submission, Attempt], Draw]


class Node:
    """One institution's party: its data set, its guard, its kept answers.

    `operators`: whose submissions it carries out. None in a simulation, where nothing is signed; a deployment has them.
    `company`: who counts towards a cohort; without it nobody but this node does, and it signs nothing itself.
    """

    def __init__(
        self,
        name: str,
        source: "Source",
        guard: Guard,
        answers: Answers,
        workshop: Workshop,
        draws: Draws | None = None,
        clock: Clock = system_clock,
        operators: Operators | None = None,
        company: Company | None = None,
    ) -> None:
        if guard.is_deployment and (operators is None or not guard.asks_policy):
            raise ValueError("a deployment's node carries out what operators signed and its policy permits, no more")
        self.name = name
        self._operators = operators
        self._company = company
        self._source = source
        self._guard = guard
        self._answers = answers
        self._workshop = workshop
        self._draws = draws or self._node_draw
        self._clock = clock
        self._trainers: dict[str, Trainer] = {}
        self._read: Submission | None = None  # the last one, as it was read: it comes with every request of its run
        self._considered = ""  # the submission that the policy and the account would admit, when they were asked last

    @property
    def dataset(self) -> DeclaredDataset:
        """What the institution declared, and may say to anybody."""
        return self._guard.declared

    def head(self, witnessed: Countersigned | None) -> tuple[Head, Sequence[Entry]]:
        """The head of the ledger, for a witness, and the charges that it does not hold yet."""
        return self._guard.head(self.name), self._guard.charges_after(witnessed.head.sequence if witnessed else 0)

    def witness(self, countersigned: Countersigned) -> None:
        """Keep the server's countersignature; raise RefusedError where it shows that this ledger is an older copy."""
        self._guard.keep_witnessed(countersigned)

    def answer(self, request: Request) -> Answer:
        """Carry out a request, or raise RefusedError with the code that may leave."""
        begun = self.begin(request)
        return begun if isinstance(begun, Answer) else self.finish(begun, self.carry_out(begun))

    def begin(self, request: Request) -> Begun | Answer:
        """All that comes before a record is touched: the attempt, spent; or the answer, where there is one."""
        submission, now = self._received(request), self._clock()
        self._check_ours(submission)
        signer = self._signer(submission, request, now)
        self._guard.consider(submission, now, signer)  # before anything is built for a plan that will not be admitted
        trainer = self._trainer(submission)
        if request.stage == "initial":
            return Answer(trainer.initial())
        attempt = request.attempt_of(submission)
        _check_parameters(request, trainer)
        if request.witnessed is not None:
            self._guard.check_witnessed(request.witnessed)
        cohort = self._cohort_of(request, submission, now)
        self._guard.admit(submission, now, signer, attempt, cohort)
        kept = self._guard.begin(submission, attempt, request.witnessed, cohort)
        if kept is not None:
            self._guard.check_release(submission, attempt, cohort)
            return self._kept_answer(submission, attempt, kept)
        return Begun(request, submission, attempt, cohort, trainer, self._draws(submission, attempt))

    def carry_out(self, begun: Begun) -> Carried:
        """Train, or evaluate; raise RefusedError where the task fails. The only step that reads records."""
        trainer, parameters, draw = begun.trainer, begun.request.parameters, begun.draw
        if begun.request.stage == "evaluate":
            answer = Answer(sums=self._guarded(lambda: trainer.evaluate(parameters, draw)))
        else:
            answer = Answer(parameters=self._guarded(lambda: trainer.train(parameters, draw)))
        return Carried(answer, trainer.done())

    def finish(self, begun: Begun, carried: Carried) -> Answer:
        """Keep the answer, and enter it: only then may it leave, and only where the policy lets it."""
        answer_hash = self._answers.keep(begun.submission.run_id, begun.attempt, carried.answer)
        self._guard.answered(begun.submission, begun.attempt, answer_hash, carried.done, begun.cohort)
        return carried.answer

    def consider(self, request: Request) -> Attendance | None:
        """Say beforehand what `answer` would: raise RefusedError for what will not be admitted. Charges nothing.

        Gives the signature that this node takes part, for its peers; None in a simulation.
        """
        submission, now = self._received(request), self._clock()
        self._check_ours(submission)
        self._guard.consider(submission, now, self._signer(submission, request, now))
        self._considered = submission.hash
        return self._company.attend(submission) if self._company else None

    def prepare(self, content: bytes) -> None:
        """Make ready to train what was considered last; no record is read. Raises PrivetError where that fails."""
        submission = Submission.from_bytes(content)
        if submission.hash == self._considered:
            self._trainer(submission)

    def standing(self, submission: Submission) -> Standing:
        """What the run has cost here: for the institution's own eyes, and a simulator's."""
        return self._guard.standing(submission)

    def close(self) -> None:
        """Let go of the ledger; the node answers nothing more."""
        self._guard.close()

    def _received(self, request: Request) -> Submission:
        """The same bytes mean the same submission; others are read, and checked, in full."""
        if self._read is None or self._read.canonical != request.submission:
            try:
                self._read = Submission.from_bytes(request.submission)
            except PrivetError as error:
                raise _malformed(error.message) from None
        return self._read

    def _check_ours(self, submission: Submission) -> None:
        asked, ours = submission.plan, self._guard.declared
        if asked.privacy.is_central:
            raise RefusedError(Refusal.UNIT_NOT_OFFERED, *SERVERS_CLAIM)
        if asked.run.task != ours.task:
            raise RefusedError(Refusal.UNKNOWN_TASK, f"task {asked.run.task!r} is not ours ({ours.task!r})", _ASK)
        if asked.dataset != ours.name:
            raise RefusedError(Refusal.UNKNOWN_DATASET, f"data set {asked.dataset!r} is not ours ({ours.name!r})", _ASK)

    def _signer(self, submission: Submission, request: Request, now: datetime) -> Signer | None:
        """Who signed, checked in full at a run's first admission; later only that the key was not revoked since."""
        if self._operators is None:
            return None
        signed = SignedSubmission(request.submission, request.signature, request.certificates)
        try:
            return self._operators.signer(signed, self._guard.signer_of(submission), now)
        except RefusedError as refusal:
            self._guard.record(submission, refusal)
            raise

    def _cohort_of(self, request: Request, submission: Submission, now: datetime) -> Cohort:
        """With whom: what this node can check of it."""
        if self._company is None:
            return Cohort()
        try:
            return self._company.cohort(submission, request.cohort, now)
        except ChannelError as error:
            raise _malformed(error.message) from None

    def _trainer(self, submission: Submission) -> Trainer:
        if submission.hash not in self._trainers:
            self._trainers.clear()  # one run at a time is kept warm: a model is what a node's memory is spent on
            self._trainers[submission.hash] = self._guarded(
                lambda: self._workshop(submission, self.dataset, self._source)
            )
        return self._trainers[submission.hash]

    def _kept_answer(self, submission: Submission, attempt: Attempt, answer_hash: str) -> Answer:
        try:
            return self._answers.read(submission.run_id, attempt, answer_hash)
        except LedgerError as error:
            raise RefusedError(Refusal.ATTEMPT_SPENT, error.message, error.remedy) from None

    def _guarded(self, work: Callable[[], _Result]) -> _Result:
        """The work's result; whatever the task raises becomes one code, and its text stays here."""
        try:
            return work()
        except Exception as error:
            log.exception("node %s: the task failed", self.name)
            raise RefusedError(
                Refusal.TASK_FAILED,
                f"the task failed: {type(error).__name__}: {error}",
                "see the node's local log",
            ) from error

    def _node_draw(self, submission: Submission, attempt: Attempt) -> Draw:
        """Fresh from the operating system where a claim is made; seeded by the public seed where none is."""
        if submission.claim is not None:
            return SYSTEM
        return public_draw(submission, attempt, self.name)


def _attempt(request: Request, submission: Submission) -> Attempt:
    if request.stage not in ("train", "evaluate"):
        raise ValueError(f"{request.stage} is no attempt")
    if not (request.round >= 1 and request.attempt >= 1):
        raise _malformed(f"round {request.round}, attempt {request.attempt}")
    digest = hashlib.sha256(f"{submission.hash}/{request.stage}/{request.round}/{request.attempt}/".encode())
    digest.update(hash_of(request.parameters).encode())
    return Attempt(request.stage, request.round, request.attempt, digest.hexdigest())


def _check_parameters(request: Request, trainer: Trainer) -> None:
    problem = problem_of(request.parameters, like=trainer.initial())
    if problem is not None:
        raise _malformed(f"parameters: {problem}")


def _malformed(why: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED_REQUEST, f"malformed request: {why}", "ask the coordinator")


_ASK = "ask the coordinator for a plan that names what this node offers"
