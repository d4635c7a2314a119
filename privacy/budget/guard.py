"""Guard: admits or refuses, for one data set of an institution, on the record of its ledger.

It stands before every touch of a record. The rules (DESIGN, section 8):
1. A submission is charged in full (rounds, spare rounds, evaluations) in one durable transaction before anything else.
2. A run id is admitted once: a second submission under it is refused, the same one is no news.
3. The node computes its own epsilon for what is asked; it must be at most the claim. Delta must lie below one over the
   declared size: above it, "publish one record at random" would count as private.
4. The plan's unit is the account's or a stronger one, and the account's filter admits the charge (filters.py).
5. A plan without a claim is admitted only where the account allows it, and voids the account: epsilon is infinite then.
6. A charge that never began is released when its submission expires, and is dead: it cannot begin afterwards.
7. `begin` is durable before the first record is read. A begun attempt is spent, whether or not it was answered.
8. The same attempt with the same bytes gets the kept answer; with other bytes it is refused.
9. Begun attempts never exceed what was charged.
10. Who signed the submission is entered with the charge, right before it. A simulation has no signatures.
11. Where the institution has a policy, it is asked before a charge, before each attempt and before each answer leaves;
    what it said is entered in the same step (decisions.py). It is asked before the account: a plan that the policy
    forbids learns nothing of what is left. A run whose first attempt may not begin is not charged.
12. What is refused is entered in the step that decided (refusals.py). A kept answer leaves again only where the policy
    permits it now; what permits it then is not entered: the same bytes left before, and that has its permission.
13. A claim that only the server's noise would keep (unit `node`) is never charged to a deployment's ledger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from ..errors import Refusal, RefusedError
from ..plan import Plan
from ..submission import Submission
from .accounting import epsilon_of, rounded_up
from .accounts import AccountBook
from .admission import Charge, check_charge, cost_of, weighed
from .book import DeclaredDataset, KnownSigner, RunCharge
from .charge import executed_events
from .decisions import Action, Asker, Body, Case, Cohort, Decide
from .ledger import CHARGES, Entry
from .refusals import record_refusal, step
from .signer import Signer
from .witness import Countersigned, Head

Stage = Literal["train", "evaluate"]
Entries = Sequence[tuple[str, Body]]  # kind and body of each
_STAGES: tuple[Stage, ...] = ("train", "evaluate")
_RELEASES: Mapping[Stage, Action] = {"train": "releaseUpdate", "evaluate": "releaseMetric"}


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

    def case(self, case: Case, action: Action, cohort: Cohort | None) -> Case:
        """What is to be decided of this attempt, from what is known of its run."""
        return replace(case, action=action, cohort=cohort or Cohort(), round=self.round, attempt=self.number)


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


class Guard:
    """The guard of one declared data set."""

    def __init__(self, accounts: AccountBook, dataset: str, decide: Decide | None = None) -> None:
        """`decide`: asks the institution's policy. Without it nobody is asked; a deployment's node has one."""
        self._accounts = accounts
        self._ledger = accounts.ledger
        self._dataset = dataset
        self._decide = decide

    @property
    def dataset(self) -> DeclaredDataset:
        """The data set as it is declared now; raise RefusedError where it is not offered any more."""
        declared = self._accounts.catch_up().datasets.get(self._dataset)
        if declared is None:
            raise RefusedError(
                Refusal.UNKNOWN_DATASET, f"data set {self._dataset} is not offered", "privet dataset list"
            )
        return declared

    @property
    def declared(self) -> DeclaredDataset:
        """The same as it was read last: for what is public, and what is looked at again before an attempt begins."""
        return self._accounts.book.datasets.get(self._dataset) or self.dataset

    @property
    def is_deployment(self) -> bool:
        """Whether the ledger is of an institution's own records, and not of a simulation."""
        return self._ledger.is_deployment

    @property
    def asks_policy(self) -> bool:
        """Whether a policy is asked."""
        return self._decide is not None

    def signer_of(self, submission: Submission) -> KnownSigner | None:
        """Who signed it, as the ledger says; None where it was not admitted."""
        return self._accounts.catch_up().signer_of(submission.run_id, submission.hash)

    def admit(
        self,
        submission: Submission,
        now: datetime,
        signer: Signer | None = None,
        first: Attempt | None = None,
        cohort: Cohort | None = None,
    ) -> None:
        """Charge the submission in full, once; raise RefusedError and enter that, and what had expired, and no more.

        `signer`: who signed it; None in a simulation, and where the submission was admitted before. `first`: the
        attempt that it is admitted for, with `cohort`. Where the policy would not let it begin, nothing is charged.
        """
        if self._stands(submission):
            return
        with step(self._accounts, submission):
            if self._admitted(submission) is None:
                self._release_expired(now)
                permitted, charge = self._weighed(submission, now, signer, first, cohort)
                self._append(permitted)
                if signer is not None:
                    self._ledger.append("operator", signer.body(submission))
                self._ledger.append("charge", charge.body(submission, self.dataset))
        self._accounts.note_progress()

    def consider(self, submission: Submission, now: datetime, signer: Signer | None = None) -> None:
        """Raise RefusedError where `admit` would, and enter that; charge nothing."""
        if self._stands(submission):
            return
        with step(self._accounts, submission):
            if self._admitted(submission) is None:
                self._release_expired(now)
                self._weighed(submission, now, signer)

    def weigh(self, submission: Submission, now: datetime) -> Charge:
        """What the submission would cost; raise RefusedError where it would not be admitted. Changes nothing."""
        self._check_mechanism(submission)
        dataset = self.dataset
        return weighed(submission, dataset, self._accounts.book.accounts[dataset.account], now)

    def begin(
        self,
        submission: Submission,
        attempt: Attempt,
        witnessed: Countersigned | None = None,
        cohort: Cohort | None = None,
    ) -> str | None:
        """Spend the attempt, durably; give the hash of its kept answer where it was answered before.

        `witnessed`, checked before, is kept in the same step. `cohort`: with whom, for the policy.
        Raises RefusedError for an attempt that was spent without an answer, differs from the one that began, or lies
        beyond the charge; ValueError for a submission that was not admitted.
        """
        with step(self._accounts, submission):
            run = self._admitted(submission)
            if run is None:
                raise ValueError(f"{submission.run_id} was not admitted")
            if attempt.key in run.begun:
                return _kept(run, attempt)
            self.dataset  # noqa: B018 -- refused where it is not offered any more
            _check_within_charge(run, submission.plan, attempt)
            self._append(self._decided(submission, attempt.stage, attempt, cohort))
            if witnessed is not None:
                self._append_witnessed(witnessed)
            self._ledger.append("begin", _attempt_body(submission, attempt) | {"request": attempt.request_hash})
        return None

    def check_release(self, submission: Submission, attempt: Attempt, cohort: Cohort | None = None) -> None:
        """Raise RefusedError where the policy does not let a kept answer leave again, and enter that; see rule 12."""
        with step(self._accounts, submission):
            self._decided(submission, _RELEASES[attempt.stage], attempt, cohort)

    def answered(
        self,
        submission: Submission,
        attempt: Attempt,
        answer_hash: str,
        done: Mapping[str, str],
        cohort: Cohort | None = None,
    ) -> None:
        """Record the durable answer to a begun attempt, once, before its first byte is sent.

        Raises RefusedError where the policy does not let it leave: the attempt is spent then, and stays unanswered.

        `done`: what the trainer says that it did (noise multiplier, clip norm, sampling rate, steps) and with what
        (code hash, versions); the auditor compares it with the plan.
        """
        with step(self._accounts, submission):
            run = self._admitted(submission)
            if run is None or run.begun.get(attempt.key) != attempt.request_hash or attempt.key in run.answered:
                raise ValueError(f"{attempt.key} did not begin so, or was answered already")
            self._append(self._decided(submission, _RELEASES[attempt.stage], attempt, cohort))
            self._ledger.append("answer", dict(done) | _attempt_body(submission, attempt) | {"answer": answer_hash})
        self._accounts.note_progress()

    def standing(self, submission: Submission) -> Standing:
        """What the run was charged, and what of it has begun."""
        run = self._accounts.catch_up().runs.get(submission.run_id)
        plan, claim = submission.plan, submission.claim
        attempts, evaluations = (run.count(stage) if run else 0 for stage in _STAGES)
        answered = sum(1 for stage, _, _ in run.answered if stage == "train") if run else 0
        if claim is None or plan.privacy.delta is None:
            return Standing(None, None, None, plan.privacy.unit, attempts, evaluations, answered)
        executed = epsilon_of(executed_events(plan, claim.noise_multiplier, attempts, evaluations), plan.privacy.delta)
        charged = run.epsilon if run and not run.is_released else Decimal(0)
        return Standing(
            charged, rounded_up(executed), plan.privacy.delta, plan.privacy.unit, attempts, evaluations, answered
        )

    def keep_witnessed(self, countersigned: Countersigned) -> None:
        """Keep a countersigned head of this ledger; raise RefusedError where it lacks it: it is an older copy then."""
        self.check_witnessed(countersigned)
        with self._accounts.transaction():
            self._append_witnessed(countersigned)

    def _append_witnessed(self, countersigned: Countersigned) -> None:
        head = countersigned.head
        if head.sequence > self._accounts.book.witnessed:
            body = {"sequence": str(head.sequence), "hash": head.hash}
            signed = {"server_key": countersigned.server_key, "server_signature": countersigned.server_signature}
            self._ledger.append("witnessed", body | signed)

    def check_witnessed(self, countersigned: Countersigned) -> None:
        """Refuse where a head that the server countersigned is not in this ledger: it was put back to an older copy."""
        head = countersigned.head
        if not countersigned.is_signed(self._ledger.key.is_signed) or head.public_key != self._ledger.key.public:
            raise RefusedError(  # or a server could make up a head, and stop the node with it
                Refusal.MALFORMED_REQUEST, "a countersigned head that this ledger's key did not sign", _ASK_COORDINATOR
            )
        is_ours = self._accounts.has(head.sequence, head.hash)
        if not is_ours and (head.sequence, head.hash) not in self._accounts.catch_up().recovered_heads:
            raise RefusedError(
                Refusal.LEDGER_BEHIND,
                f"the server witnessed entry {head.sequence}, which this ledger lacks: it is an older copy",
                "privet budget recover, with the witness that the server holds",
            )

    def head(self, owner: str) -> Head:
        """The head of the ledger, stated and signed by the institution."""
        return Head.at(owner, *self._accounts.newest(), self._ledger.key)

    def charges_after(self, sequence: int) -> Sequence[Entry]:
        """The charges that were entered after a number, up to the head: what a witness does not hold yet."""
        last = self._accounts.last_charge  # one that another process enters meanwhile is behind the head that is told
        if sequence >= last:
            return []
        return [entry for entry in self._ledger.entries(after=sequence, kinds=CHARGES) if entry.sequence <= last]

    def record(self, submission: Submission, refusal: RefusedError) -> None:
        """Enter that the submission was refused, and why."""
        record_refusal(self._accounts, submission, refusal)

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def _weighed(
        self,
        submission: Submission,
        now: datetime,
        signer: Signer | None,
        first: Attempt | None = None,
        cohort: Cohort | None = None,
    ) -> tuple[Entries, Charge]:
        """The permission and the cost, where policy and account admit it; the policy is asked first, of the first
        attempt too. Enters nothing.
        """
        self._check_mechanism(submission)
        dataset = self.dataset
        account = self._accounts.book.accounts[dataset.account]
        permitted: Entries = ()
        charge = cost_of(submission, account, now)
        if self._decide is not None:
            asker = signer.asker if signer else Asker(submission.body.operator, "")
            case = Case(submission, "admit", asker, now, self._accounts.book, dataset, account, charge)
            permitted = self._decide(case).entries()
            if first is not None:  # it is asked again, and entered, when the attempt begins
                self._decide(first.case(case, first.stage, cohort))
        check_charge(submission, dataset, account, charge)
        return permitted, charge

    def _check_mechanism(self, submission: Submission) -> None:
        if self.is_deployment and submission.plan.privacy.is_central:
            raise RefusedError(Refusal.UNIT_NOT_OFFERED, *SERVERS_CLAIM)

    def _append(self, entries: Entries) -> None:
        for kind, body in entries:
            self._ledger.append(kind, body)

    def _decided(self, submission: Submission, action: Action, attempt: Attempt, cohort: Cohort | None) -> Entries:
        """What the policy says of an attempt of an admitted run, as it is entered; nothing where there is no policy."""
        if self._decide is None:
            return ()
        book, now = self._accounts.book, self._ledger.now
        known = book.signer_of(submission.run_id, submission.hash)
        asker = Asker(submission.body.operator, known.key_fingerprint if known else "")
        account = book.accounts[book.runs[submission.run_id].account]
        case = Case(submission, action, asker, now, book, self.dataset, account)
        return self._decide(attempt.case(case, action, cohort)).entries()

    def _stands(self, submission: Submission) -> bool:
        """Whether it is known to be admitted: then there is nothing to decide or to enter, and no step to take.

        What has ended it since, in another process, shows in the step that begins an attempt.
        """
        run = self._accounts.book.runs.get(submission.run_id)
        return run is not None and not run.is_ended and run.submission == submission.hash

    def _admitted(self, submission: Submission) -> RunCharge | None:
        run = self._accounts.book.runs.get(submission.run_id)
        if submission.run_id in self._accounts.book.apps:
            raise RefusedError(
                Refusal.OTHER_SUBMISSION, f"run {submission.run_id} is a Flower app's", "submit the plan as a new run"
            )
        if run and (run.submission != submission.hash or run.is_ended):
            why = "released before it began" if run.is_released else "admitted with another submission"
            why = "recovered from the witness, so what of it was spent is unknown" if run.is_recovered else why
            raise RefusedError(
                Refusal.OTHER_SUBMISSION, f"run {submission.run_id} was {why}", "submit the plan as a new run"
            )
        return run

    def _release_expired(self, now: datetime) -> None:
        moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for run in list(self._accounts.book.runs.values()):
            is_waiting = not (run.begun or run.is_ended) and run.epsilon.is_finite()
            if is_waiting and run.expires <= moment:
                self._ledger.append("release", {"run": run.run, "why": f"never began, expired {run.expires}"})
        self._accounts.catch_up()


def _kept(run: RunCharge, attempt: Attempt) -> str:
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


def _check_within_charge(run: RunCharge, plan: Plan, attempt: Attempt) -> None:
    charged = plan.attempts_charged if attempt.stage == "train" else plan.evaluations_charged
    if run.count(attempt.stage) >= charged:
        raise RefusedError(
            Refusal.ROUNDS_EXHAUSTED,
            f"all {charged} {attempt.stage} requests that were charged have begun",
            "submit a new run with more spare-rounds",
        )
    if not 1 <= attempt.round <= plan.run.rounds:
        raise RefusedError(
            Refusal.MALFORMED_REQUEST, f"round {attempt.round} of {plan.run.rounds}", "ask for a round of the plan"
        )


def _attempt_body(submission: Submission, attempt: Attempt) -> dict[str, str]:
    return {
        "run": submission.run_id,
        "stage": attempt.stage,
        "round": str(attempt.round),
        "attempt": str(attempt.number),
    }


_ASK_COORDINATOR = "ask the coordinator"
# Why a node takes no part in a run of unit `node`: what, and what to do.
SERVERS_CLAIM = (
    "unit 'node' is protected by the server's noise alone, which no institution can check; it is simulated only",
    "submit a plan with unit record, or try this one with privet simulate",
)
