"""Decisions: what the institution's policy said of a request, for the ledger. The policy itself is asked by `Decide`.

The rules:
1. A decision stands before what it permits, in the same durable step: a charge, a `begin`, an answer.
2. The entry holds everything that was decided on, so that an auditor can decide again. The text of the policy is
   entered once, before its first decision.
3. What is denied is entered too, in the step that decided: the same denial once a day, and so many (refusals.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ..errors import Refusal, RefusedError
from ..plan_app import AnySubmission
from .admission import Charge
from .book import Account, Book, DeclaredDataset

Action = Literal["admit", "train", "evaluate", "releaseUpdate", "releaseMetric", "runApp"]
Body = Mapping[str, "str | Sequence[Mapping[str, str]]"]


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who takes part in a round, as far as this node can know. `told`: parties that the server names.

    `parties`: those that count, this node among them: whose signature this node has checked, and whose key is pinned
    where the institution pinned any (`are_pinned`).
    """

    told: int = 1
    parties: int = 1
    are_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """The operator who asks. `certified`: when its certificate began; None where it was checked before, or never."""

    name: str
    key_fingerprint: str
    certified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be decided. `charge`: what the submission would cost; None once it was charged, and for an app.

    `dataset`, `account`: None for an app. `round` and `attempt`: 0 where none is asked for.
    """

    submission: AnySubmission
    action: Action
    asker: Asker
    now: datetime
    book: Book
    dataset: DeclaredDataset | None = None
    account: Account | None = None
    charge: Charge | None = None
    cohort: Cohort = Cohort()
    round: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """A permission, as it is entered: `policy`, the body of the entry that has the rules' text, where it is new."""

    body: Body
    policy: Body | None = None

    def entries(self) -> Sequence[tuple[str, Body]]:
        """Kind and body of each entry, in order."""
        return [*([("policy", self.policy)] if self.policy else []), ("decision", self.body)]


# Asks the institution's policy; raises DeniedError where it does not permit.
Decide = Callable[[Case], Decided]


class DeniedError(RefusedError):
    """The policy says no, or not yet. `disclosed`: what the institution lets be told beside the code."""

    def __init__(self, code: Refusal, message: str, remedy: str, decided: Decided, disclosed: str) -> None:
        super().__init__(code, message, remedy)
        self.decided = decided
        self.disclosed = disclosed


def facts_text(facts: Mapping[str, Any]) -> str:
    """Facts as they are entered: one spelling for one meaning. Longs are exact, other than in canonical JSON."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def changed(facts: Mapping[str, Any], since: Mapping[str, Any]) -> dict[str, Any]:
    """What is other than at the admission: an entry of a later round holds that alone. One level deep."""
    return {
        part: {key: value for key, value in told.items() if since.get(part, {}).get(key) != value}
        for part, told in facts.items()
    }
