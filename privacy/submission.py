"""Submission: a resolved plan with federation, run id, operator and validity. It is what is hashed, signed and charged.

Resolved means: every default is written out, the noise multiplier is a number, the claim is a number, and
`[simulation]` is gone. The bytes are canonical (RFC 8785), so that two parties that mean the same hash the same. The
signature over these bytes comes with the channel; the fields that it covers are here.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Self

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from .budget.accounting import epsilon_of, rounded_up, shown
from .budget.calibration import calibrated_noise
from .budget.charge import charged_events, evaluation_events
from .errors import PlanError, UsageError
from .plan import LARGEST_EPSILON, Epsilon, Name, NoiseMultiplier, Plan

FORMAT = 1
# A submission is a page of text; a larger one is refused before it is parsed.
SUBMISSION_BYTES = 64 * 1024
LONGEST_VALIDITY = timedelta(days=366)


class Claim(BaseModel):
    """What the submission promises about every node that takes part: at most this, for the whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon: Epsilon
    noise_multiplier: NoiseMultiplier


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int = Field(ge=FORMAT, le=FORMAT)
    federation: Name
    run_id: Name
    operator: Name
    not_before: StrictStr
    expires: StrictStr
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
        if not timedelta(0) < _time(self.expires) - _time(self.not_before) <= LONGEST_VALIDITY:
            raise ValueError("it must expire after it begins, and within a year")
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

    def is_valid_at(self, moment: datetime) -> bool:
        """Whether a node may admit it now."""
        return _time(self.body.not_before) <= moment < _time(self.body.expires)

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed and signed (RFC 8785)."""
        return rfc8785.dumps(
            self.body.model_dump(mode="json", by_alias=True, exclude_none=True) | {"claim": self._claim}
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical bytes, hexadecimal."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def _claim(self) -> dict[str, float] | None:
        return self.claim.model_dump() if self.claim else None

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The submission in canonical bytes from outside; anything else raises UsageError."""
        if len(content) > SUBMISSION_BYTES:
            raise _malformed(f"{len(content)} bytes, allowed are {SUBMISSION_BYTES}")
        try:
            submission = cls(_Body.model_validate(json.loads(content)))
        except ValidationError as error:
            raise _malformed(_first_problem(error)) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(f"not JSON: {error}") from None
        if submission.canonical != content:  # one meaning, one hash: no second spelling is accepted
            raise _malformed("its bytes are not canonical (RFC 8785)")
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
            not_before=_text(now),
            expires=_text(now + validity),
            claim=claim,
            plan=_with_defaults(plan),
        )
    )


def _with_defaults(plan: Plan) -> Plan:
    """The plan with the defaults written out that follow from other keys, and without `[simulation]`."""
    defaults = {"run": plan.run.model_copy(update={"dataset": plan.dataset}), "simulation": None}
    if not plan.privacy.is_private:
        return plan.model_copy(update=defaults)
    privacy = plan.privacy.model_copy(update={"mechanism": plan.privacy.mechanism or "local"})
    return plan.model_copy(update=defaults | {"privacy": privacy})


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
        return Claim(epsilon=float(rounded_up(epsilon)), noise_multiplier=privacy.noise_multiplier)
    assert privacy.epsilon is not None, "a validated plan has exactly one of the two"
    steps = plan.attempts_charged * plan.training.local_steps
    others = evaluation_events(plan, plan.evaluations_charged)
    noise = calibrated_noise(privacy.epsilon, privacy.delta, privacy.sampling_rate, steps, others)
    return Claim(epsilon=privacy.epsilon, noise_multiplier=noise)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if _text(moment) != text:  # strptime also reads 2026-1-1, and digits of other scripts
        raise ValueError("a time is spelled YYYY-MM-DDThh:mm:ssZ")
    return moment


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").partition("\n")[0]
    return ": ".join([*filter(None, [".".join(str(part) for part in first["loc"])]), message])


def _malformed(why: str) -> UsageError:
    return UsageError(f"malformed submission: {why}", "ask the coordinator to submit the plan again")
