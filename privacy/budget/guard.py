"""Guard: admits or refuses, for one node, on the record of its ledger. It stands before every touch of a record.

The rules (DESIGN, section 8):
1. A submission is charged in full (rounds, spare rounds, evaluations) in one durable transaction before anything else.
2. A run id is admitted once: a second submission under it is refused, the same one is no news.
3. The node computes its own epsilon for what is asked; it must be at most the claim. Delta must lie below one over the
   declared size: above it, "publish one record at random" would count as private.
4. `begin` is durable before the first record is read. A begun attempt is spent, whether or not it was answered.
5. The same attempt with the same bytes gets the kept answer; with other bytes it is refused.
6. Begun attempts never exceed what was charged.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from ..errors import Refusal, RefusedError
from ..plan import Plan
from ..submission import Submission
from .accounting import ACCOUNTANT, epsilon_of, rounded_up
from .charge import charged_events, executed_events
from .events import RELATION
from .ledger import Entry, Ledger

Stage = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to touch records. `request_hash`: SHA-256 over everything that was asked, hexadecimal."""

    stage: Stage
    round: int
    number: int
    request_hash: str

    @property
    def key(self) -> tuple[str, int, int]:
        """What may begin once."""
        return (self.stage, self.round, self.number)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run has cost a node.

    `epsilon`: charged and enforced. `epsilon_executed`: of what began, by PLD, if the schedule was fixed in advance.
    Both at `delta`, per `unit`, add-or-remove-one; None where no claim is made.
    `attempts`, `evaluations`: begun; `answered`: training attempts with a durable answer.
    """

    epsilon: Decimal | None
    epsilon_executed: Decimal | None
    delta: float | None
    unit: str
    attempts: int
    evaluations: int
    answered: int


@dataclass(slots=True)
class _Run:
    submission_hash: str
    epsilon: str | None
    begun: dict[tuple[str, int, int], str] = field(default_factory=dict)
    answered: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def count(self, stage: Stage) -> int:
        return sum(1 for begun_stage, _, _ in self.begun if begun_stage == stage)


class Guard:
    """The guard of one node's records. `declared_size`: the public number of records, the denominator of averages."""

    def __init__(self, ledger: Ledger, declared_size: int) -> None:
        if declared_size < 1:
            raise ValueError(f"declared_size must be at least 1, got {declared_size}")
        self._ledger = ledger
        self._declared_size = declared_size
        self._runs: dict[str, _Run] = {}
        self._seen = 0

    def admit(self, submission: Submission, now: datetime) -> None:
        """Charge the submission in full, once. Raises RefusedError; then nothing but the refusal is recorded."""
        try:
            with self._ledger.transaction():
                self._catch_up()
                if not self._is_admitted(submission):
                    self._append_charge(submission, now)
        except RefusedError as refusal:
            self._ledger.append("refused", _refusal_body(submission, refusal))
            raise

    def begin(self, submission: Submission, attempt: Attempt) -> str | None:
        """Spend the attempt, durably; give the hash of its kept answer where it was answered before.

        Raises RefusedError for an attempt that was spent without an answer, differs from the one that began, or lies
        beyond the charge; ValueError for a submission that was not admitted.
        """
        try:
            with self._ledger.transaction():
                run = self._admitted(submission)
                if attempt.key in run.begun:
                    return _kept(run, attempt)
                _check_within_charge(run, submission.plan, attempt)
                self._ledger.append("begin", _attempt_body(submission, attempt) | {"request": attempt.request_hash})
                return None
        except RefusedError as refusal:
            self._ledger.append("refused", _refusal_body(submission, refusal))
            raise

    def answered(self, submission: Submission, attempt: Attempt, answer_hash: str) -> None:
        """Record the durable answer to a begun attempt, once, before its first byte is sent."""
        with self._ledger.transaction():
            run = self._admitted(submission)
            if run.begun.get(attempt.key) != attempt.request_hash or attempt.key in run.answered:
                raise ValueError(f"{attempt.key} did not begin so, or was answered already")
            self._ledger.append("answer", _attempt_body(submission, attempt) | {"answer": answer_hash})

    def standing(self, submission: Submission) -> Standing:
        """What the run was charged, and what of it has begun."""
        self._catch_up()
        plan, claim = submission.plan, submission.claim
        run = self._runs.get(submission.run_id) or _Run(submission.hash, None)
        attempts, evaluations = run.count("train"), run.count("evaluate")
        answered = sum(1 for stage, _, _ in run.answered if stage == "train")
        if claim is None or plan.privacy.delta is None:
            return Standing(None, None, None, plan.privacy.unit, attempts, evaluations, answered)
        executed = epsilon_of(executed_events(plan, claim.noise_multiplier, attempts, evaluations), plan.privacy.delta)
        charged = Decimal(run.epsilon) if run.epsilon is not None else Decimal(0)
        return Standing(
            charged,
            rounded_up(executed),
            plan.privacy.delta,
            plan.privacy.unit,
            attempts,
            evaluations,
            answered,
        )

    def _admitted(self, submission: Submission) -> _Run:
        self._catch_up()
        if not self._is_admitted(submission):
            raise ValueError(f"run {submission.run_id} was not admitted")
        return self._runs[submission.run_id]

    def _is_admitted(self, submission: Submission) -> bool:
        run = self._runs.get(submission.run_id)
        if run and run.submission_hash != submission.hash:
            raise RefusedError(
                Refusal.OTHER_SUBMISSION,
                f"run {submission.run_id} was admitted with another submission",
                "submit the changed plan as a new run",
            )
        return run is not None

    def _append_charge(self, submission: Submission, now: datetime) -> None:
        if not submission.is_valid_at(now):
            raise RefusedError(
                Refusal.NOT_VALID_NOW,
                f"the submission is valid from {submission.body.not_before} to {submission.body.expires}",
                "submit the plan again, and check both clocks",
            )
        plan, claim = submission.plan, submission.claim
        body = {"run": submission.run_id, "submission": submission.hash, "unit": plan.privacy.unit}
        if claim is None or plan.privacy.delta is None:
            self._ledger.append("charge", body)
            return
        _check_delta(plan.privacy.delta, self._declared_size)
        events = charged_events(plan, claim.noise_multiplier)
        epsilon = rounded_up(epsilon_of(events, plan.privacy.delta))
        _check_claim(epsilon, claim.epsilon)
        terms = {
            "epsilon": str(epsilon),
            "delta": repr(plan.privacy.delta),
            "relation": RELATION,
            "accountant": ACCOUNTANT,
        }
        self._ledger.append("charge", body | terms | {"events": [event.as_json() for event in events]})

    def _catch_up(self) -> None:
        """Read what was appended since the last look, by this process or another."""
        for entry in self._ledger.entries(after=self._seen):
            self._fold(entry)
            self._seen = entry.sequence

    def _fold(self, entry: Entry) -> None:
        content = entry.content
        if entry.kind == "charge":
            self._runs[content["run"]] = _Run(content["submission"], content.get("epsilon"))
        elif entry.kind in ("begin", "answer"):
            run = self._runs[content["run"]]
            key = (content["stage"], int(content["round"]), int(content["attempt"]))
            if entry.kind == "begin":
                run.begun[key] = content["request"]
            else:
                run.answered[key] = content["answer"]


def _kept(run: _Run, attempt: Attempt) -> str:
    if run.begun[attempt.key] != attempt.request_hash:
        raise RefusedError(
            Refusal.ATTEMPT_MISMATCH,
            f"{attempt.stage} round {attempt.round} attempt {attempt.number} began with other bytes",
            "ask with a new attempt number",
        )
    if attempt.key not in run.answered:
        raise RefusedError(
            Refusal.ATTEMPT_SPENT,
            f"{attempt.stage} round {attempt.round} attempt {attempt.number} began and was never answered",
            "ask with a new attempt number",
        )
    return run.answered[attempt.key]


def _check_within_charge(run: _Run, plan: Plan, attempt: Attempt) -> None:
    charged = plan.attempts_charged if attempt.stage == "train" else plan.evaluations_charged
    if run.count(attempt.stage) >= charged:
        raise RefusedError(
            Refusal.ROUNDS_EXHAUSTED,
            f"all {charged} {attempt.stage} requests that were charged have begun",
            "submit a new run with more spare-rounds",
        )
    if not 1 <= attempt.round <= plan.run.rounds:
        raise RefusedError(
            Refusal.MALFORMED_REQUEST,
            f"round {attempt.round} of {plan.run.rounds}",
            "ask for a round of the plan",
        )


def _check_delta(delta: float, declared_size: int) -> None:
    if delta >= 1 / declared_size:
        raise RefusedError(
            Refusal.DELTA_TOO_LARGE,
            f"delta {delta:g} is not below 1 / declared size = 1 / {declared_size} = {1 / declared_size:.3g}",
            "ask for a smaller delta, well below one over the number of records",
        )


def _check_claim(epsilon: Decimal, claimed: float) -> None:
    if epsilon > Decimal(repr(claimed)):  # the decimal that the submission shows, not its double
        raise RefusedError(
            Refusal.EPSILON_ABOVE_CLAIM,
            f"what is asked costs epsilon {epsilon}, the submission claims {claimed}",
            "submit the plan again with a noise multiplier that keeps the claim",
        )


def _attempt_body(submission: Submission, attempt: Attempt) -> dict[str, str]:
    return {
        "run": submission.run_id,
        "stage": attempt.stage,
        "round": str(attempt.round),
        "attempt": str(attempt.number),
    }


def _refusal_body(submission: Submission, refusal: RefusedError) -> dict[str, str]:
    return {
        "run": submission.run_id,
        "submission": submission.hash,
        "code": refusal.code,
        "why": refusal.message,
    }
