"""AppPlan: the plan of an unmodified Flower app, which is installed at server and nodes. It makes no privacy claim.

The plan names the app and gives its run config; code never travels. What the app reads at a node, privet cannot see:
nothing is charged, and nothing is promised. A node runs an app only where its institution allowed it by name.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, StringConstraints

from .envelope import (
    FORMAT,
    Envelope,
    canonical_of,
    check_canonical,
    hash_of_bytes,
    read_envelope,
    read_json,
    time_text,
)
from .plan import MOST_NODES, MOST_OPTIONS, Name, OptionName, OptionValue, Section
from .submission import Submission

# Where an app is installed, as MODULE:OBJECT. It is configuration of a party's own, never part of a message.
REFERENCE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
Reference = Annotated[StrictStr, StringConstraints(pattern=REFERENCE_PATTERN, max_length=200)]


class AppRunSection(Section):
    """What the run is called."""

    name: Name


class AppSection(Section):
    """Which app runs, with which config, on how many nodes at least.

    `config` is Flower's run config, in place of the app's own defaults. A whole number arrives as an integer: canonical
    JSON does not tell 1.0 from 1.
    """

    name: Name
    min_nodes: Annotated[StrictInt, Field(ge=1, le=MOST_NODES)] = 2
    config: Annotated[dict[OptionName, OptionValue], Field(max_length=MOST_OPTIONS, default_factory=dict)]


class AppPrivacySection(Section):
    """That no claim is made; it must be said."""

    unit: Literal["none"]


class AppPlan(BaseModel):
    """A validated plan of a Flower app."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: AppRunSection
    app: AppSection
    privacy: AppPrivacySection


class _AppBody(Envelope):
    claim: None
    plan: AppPlan


@dataclass(frozen=True)
class AppSubmission:
    """One run of an app, as it is asked of every node. Equal content, equal `hash`."""

    body: _AppBody

    @property
    def plan(self) -> AppPlan:
        """What was asked for."""
        return self.body.plan

    @property
    def run_id(self) -> str:
        """Unique in the federation; a node admits it once."""
        return self.body.run_id

    def is_valid_at(self, moment: datetime) -> bool:
        """Whether a node may admit it now."""
        return self.body.is_valid_at(moment)

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed and signed (RFC 8785)."""
        return canonical_of(self.body, None)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical bytes, hexadecimal."""
        return hash_of_bytes(self.canonical)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The submission in canonical bytes from outside; anything else raises UsageError."""
        submission = cls(read_envelope(content, _AppBody))
        check_canonical(content, submission.canonical)
        return submission


AnySubmission = Submission | AppSubmission


def resolve_app(
    plan: AppPlan,
    *,
    federation: str,
    run_id: str,
    operator: str,
    now: datetime,
    validity: timedelta = timedelta(days=30),
) -> AppSubmission:
    """The plan as a submission."""
    return AppSubmission(
        _AppBody(
            format=FORMAT,
            federation=federation,
            run_id=run_id,
            operator=operator,
            not_before=time_text(now),
            expires=time_text(now + validity),
            claim=None,
            plan=plan,
        )
    )


def submission_of(content: bytes) -> AnySubmission:
    """The submission in canonical bytes from outside, of a task or of an app; anything else raises UsageError."""
    told = read_json(content)
    plan = told.get("plan") if isinstance(told, dict) else None
    if isinstance(plan, dict) and "app" in plan:
        return AppSubmission.from_bytes(content)
    return Submission.from_bytes(content)
