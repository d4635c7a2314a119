"""Envelope: what a submission says beside its plan (federation, run, operator, validity), and how its bytes are read.

The bytes are canonical (RFC 8785), so that two parties that mean the same hash the same. No second spelling is
accepted: one meaning, one hash, one signature.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from .errors import UsageError
from .plan import Name

FORMAT = 1
# A submission is a page of text; a larger one is refused before it is parsed.
SUBMISSION_BYTES = 64 * 1024
LONGEST_VALIDITY = timedelta(days=366)


class Envelope(BaseModel):
    """The fields around a plan. What is allowed there beside them, a subclass says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int = Field(ge=FORMAT, le=FORMAT)
    federation: Name
    run_id: Name
    operator: Name
    not_before: StrictStr
    expires: StrictStr

    @model_validator(mode="after")
    def _is_valid_for_a_time(self) -> Self:
        if not timedelta(0) < time_of(self.expires) - time_of(self.not_before) <= LONGEST_VALIDITY:
            raise ValueError("it must expire after it begins, and within a year")
        return self

    def is_valid_at(self, moment: datetime) -> bool:
        """Whether a node may admit it now."""
        return time_of(self.not_before) <= moment < time_of(self.expires)


AnyEnvelope = TypeVar("AnyEnvelope", bound=Envelope)


def canonical_of(body: Envelope, claim: dict[str, float] | None) -> bytes:
    """The bytes that are hashed and signed (RFC 8785). `claim` is written out also where it is none."""
    told: dict[str, Any] = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    return rfc8785.dumps(told | {"claim": claim})


def hash_of_bytes(canonical: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(canonical).hexdigest()


def read_envelope(content: bytes, model: type[AnyEnvelope]) -> AnyEnvelope:
    """The body in bytes from outside; anything else raises UsageError. The caller compares the canonical bytes."""
    try:
        return model.model_validate(read_json(content))
    except ValidationError as error:
        raise malformed(_first_problem(error)) from None


def read_json(content: bytes) -> object:
    """The JSON in bytes of bounded size; raises UsageError."""
    if len(content) > SUBMISSION_BYTES:
        raise malformed(f"{len(content)} bytes, allowed are {SUBMISSION_BYTES}")
    try:
        told: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise malformed(f"not JSON: {error}") from None
    return told


def check_canonical(content: bytes, canonical: bytes) -> None:
    """Raise UsageError for a second spelling of what was meant."""
    if canonical != content:
        raise malformed("its bytes are not canonical (RFC 8785)")


def time_text(moment: datetime) -> str:
    """A moment as a submission spells it, in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: str) -> datetime:
    """The moment that is spelled so; raise ValueError for another spelling."""
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if time_text(moment) != text:  # strptime also reads 2026-1-1, and digits of other scripts
        raise ValueError("a time is spelled YYYY-MM-DDThh:mm:ssZ")
    return moment


def malformed(why: str) -> UsageError:
    """A submission that is none."""
    return UsageError(f"malformed submission: {why}", "ask the coordinator to submit the plan again")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").partition("\n")[0]
    return ": ".join([*filter(None, [".".join(str(part) for part in first["loc"])]), message])
