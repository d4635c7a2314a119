"""Submission: a resolved plan with federation, run id, operator and validity. It is what is hashed, signed and charged.

Resolved means: every default is written out, the noise multiplier is a number, the claim is a number, and
`[simulation]` is gone. The bytes are canonical (RFC 8785), so that two parties that mean the same hash the same. The
signature over these bytes comes with the channel; the fields that it covers are here.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from .budget.accounting import EPSILON_DIGITS, epsilon_of, rounded_up, shown
from .budget.calibration import calibrated_noise
from .budget.charge import charged_events, evaluation_events, noisy_steps, sampling_rate_of
from .envelope import FORMAT, Envelope, canonical_of, check_canonical, hash_of_bytes, read_envelope, time_text
from .errors import PlanError
from .plan import LARGEST_EPSILON, MECHANISMS, Epsilon, NoiseMultiplier, Plan
from .plan_central import CLIP_LEARNING_RATE, adaptive_problem


class Claim(BaseModel):
    """What the submission promises about every node that takes part: at most this, for the whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon: Epsilon
    noise_multiplier: NoiseMultiplier


class _Body(Envelope):
    claim: Claim | None
    plan: Plan

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.claim is not None) != self.plan.privacy.is_private:
            raise ValueError("a claim is made exactly when the plan has a unit")
        if self.plan.simulation is not None:
            raise ValueError("[simulation] is read by the simulator alone")
        if self.plan != _with_defaults(self.plan):
            raise ValueError("its plan is not resolved: a default is left open")
        if self.claim is not None and not _is_of(self.claim, self.plan):
            raise ValueError("the claim is another than the plan's")
        problem = _adaptive_problem(self.claim, self.plan)
        if problem is not None:
            raise ValueError(problem)
        return self


@dataclass(frozen=True)
class Submission:
    """One run, as it is asked of every node. Equal content, equal `hash`."""

    body: _Body

    @property
    def plan(self) -> Plan:
        """The resolved plan."""
        return self.body.plan

    @property
    def run_id(self) -> str:
        """Unique in the federation; a node admits it once."""
        return self.body.run_id

    @property
    def claim(self) -> Claim | None:
        """None exactly when the plan's unit is `none`."""
        return self.body.claim

    @property
    def records_claim(self) -> Claim | None:
        """The claim that a node keeps by itself, by the noise of its own steps; None where it keeps none."""
        return None if self.plan.privacy.is_central else self.claim

    def is_valid_at(self, moment: datetime) -> bool:
        """Whether a node may admit it now."""
        return self.body.is_valid_at(moment)

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed and signed (RFC 8785)."""
        return canonical_of(self.body, self.claim.model_dump() if self.claim else None)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical bytes, hexadecimal."""
        return hash_of_bytes(self.canonical)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Submission":
        """The submission in canonical bytes from outside; anything else raises UsageError."""
        return _read(content)


@lru_cache(maxsize=4)  # every node of a simulation reads the same bytes, and what they say never changes
def _read(content: bytes) -> Submission:
    submission = Submission(read_envelope(content, _Body))
    check_canonical(content, submission.canonical)
    return submission


def resolve(
    plan: Plan,
    *,
    federation: str,
    run_id: str,
    operator: str,
    now: datetime,
    validity: timedelta = timedelta(days=30),
) -> Submission:
    """The plan as a submission: the noise calibrated once (or the epsilon computed), every default filled in.

    Raises PlanError when no noise can reach the epsilon asked for, or the noise given leaves none worth a claim.
    """
    claim = claim_of(plan)
    return Submission(
        _Body(
            format=FORMAT,
            federation=federation,
            run_id=run_id,
            operator=operator,
            not_before=time_text(now),
            expires=time_text(now + validity),
            claim=claim,
            plan=_with_defaults(plan),
        )
    )


def _with_defaults(plan: Plan) -> Plan:
    """The plan with the defaults written out that follow from other keys, and without `[simulation]`."""
    defaults = {"run": plan.run.model_copy(update={"dataset": plan.dataset}), "simulation": None}
    if not plan.privacy.is_private:
        return plan.model_copy(update=defaults)
    filled: dict[str, object] = {"mechanism": MECHANISMS[plan.privacy.unit]}
    if plan.privacy.target_quantile is not None:
        filled["clip_learning_rate"] = plan.privacy.clip_learning_rate or CLIP_LEARNING_RATE
    return plan.model_copy(update=defaults | {"privacy": plan.privacy.model_copy(update=filled)})


def _is_of(claim: Claim, plan: Plan) -> bool:
    """Whether the claim repeats what the plan gives, be it the epsilon or the noise."""
    asked = plan.privacy
    return claim.epsilon == asked.epsilon if asked.epsilon else claim.noise_multiplier == asked.noise_multiplier


def claim_of(plan: Plan) -> Claim | None:
    """What the plan promises: its epsilon and the noise that keeps it, or its noise and the epsilon that follows.

    Raises PlanError when no noise can reach the epsilon, or the noise gives none that is worth a claim.
    """
    privacy = plan.privacy
    if not privacy.is_private or privacy.delta is None:
        return None
    if privacy.noise_multiplier is not None:
        epsilon = epsilon_of(charged_events(plan, privacy.noise_multiplier), privacy.delta)
        if epsilon > LARGEST_EPSILON:
            raise PlanError(
                [f"noise-multiplier {privacy.noise_multiplier:g} costs epsilon {shown(epsilon)}, more than any claim"],
                "raise noise-multiplier (of privacy or evaluation), or claim nothing with unit 'none'",
            )
        least = max(rounded_up(epsilon), EPSILON_DIGITS)  # where delta alone would do, a claim is still a number
        return Claim(epsilon=float(least), noise_multiplier=privacy.noise_multiplier)
    assert privacy.epsilon is not None, "a validated plan has exactly one of the two"
    steps = noisy_steps(plan, plan.attempts_charged)
    others = evaluation_events(plan, plan.evaluations_charged)
    noise = calibrated_noise(privacy.epsilon, privacy.delta, sampling_rate_of(plan), steps, others)
    claim = Claim(epsilon=privacy.epsilon, noise_multiplier=noise)
    problem = _adaptive_problem(claim, plan)
    if problem is not None:
        raise PlanError([problem], "raise privacy.count-noise-stddev: a twentieth of the nodes of a round is usual")
    return claim


def _adaptive_problem(claim: Claim | None, plan: Plan) -> str | None:
    return adaptive_problem(claim.noise_multiplier, plan.privacy.count_noise_stddev) if claim else None
