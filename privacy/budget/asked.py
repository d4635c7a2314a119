"""Asked: which submissions a person was asked to approve, and what was said. A part of the book (book.py).

The rules:
1. A submission waits while the policy's newest decision on it is `pending`, and no role has refused it.
2. The last word of each role counts, until the submission is admitted: a mistaken rejection is taken back by an
   approval, and an approval by a rejection. Both stay in the ledger. What was admitted is ended by `privet node
   withdraw`.
3. What has expired is forgotten; nothing can be approved any more.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Said = Literal["approved", "refused"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A submission that a person was asked about, first at `since`. `plan`: its canonical text, as it was signed.

    `roles`: whose approval it needs, or has; `rules`: the ids of the rules that ask for it.
    """

    run: str
    submission: str
    operator: str
    roles: tuple[str, ...]
    rules: tuple[str, ...]
    plan: str
    since: str
    expires: str

    def is_expired_at(self, moment: str) -> bool:
        """Whether it is too late. `moment`: UTC, as an entry has it."""
        return self.expires[:_SECONDS] <= moment[:_SECONDS]


class Asked:
    """`by_run`: every submission that a person was asked about, and that is not over. `said`: of each, by its hash.

    `count`: how many words were said; another whenever somebody has spoken.
    """

    def __init__(self) -> None:
        self.by_run: dict[str, Pending] = {}
        self.said: dict[str, dict[str, str]] = {}
        self.count = 0

    @property
    def waiting(self) -> dict[str, Pending]:
        """Those that still wait for somebody, by run."""
        return {run: asked for run, asked in self.by_run.items() if self.missing(asked) and not self.refusers(asked)}

    def missing(self, asked: Pending) -> tuple[str, ...]:
        """The roles whose approval it lacks."""
        said = self.said.get(asked.submission, {})
        return tuple(role for role in asked.roles if said.get(role) != "approved")

    def refusers(self, asked: Pending) -> tuple[str, ...]:
        """The roles that have refused it."""
        said = self.said.get(asked.submission, {})
        return tuple(role for role, verdict in sorted(said.items()) if verdict == "refused")

    def decide(self, content: Mapping[str, Any], time: str, *, is_admission: bool) -> None:
        """Fold a `decision` entry."""
        if content["verdict"] == "pending":
            self._ask(content, time)
        elif is_admission:
            self.by_run.pop(content["run"], None)

    def answer(self, content: Mapping[str, Any]) -> None:
        """Fold an `approval` entry."""
        self.said.setdefault(content["submission"], {})[content["role"]] = content["verdict"]
        self.count += 1

    def _ask(self, content: Mapping[str, Any], time: str) -> None:
        self.by_run = {run: asked for run, asked in self.by_run.items() if not asked.is_expired_at(time)}
        run, submission = content["run"], content["submission"]
        before = self.by_run.get(run)
        roles, since = set(content["approvals"].split()), time
        if before is not None and before.submission == submission:
            roles |= set(before.roles) & set(self.said.get(submission, {}))  # who has spoken may speak again
            since = before.since
        self.by_run[run] = Pending(
            run=run,
            submission=submission,
            operator=content["operator"],
            roles=tuple(sorted(roles)),
            rules=tuple(content["rules"].split()),
            plan=content["plan"],
            since=since,
            expires=json.loads(content["plan"])["expires"],
        )

    def dump(self) -> dict[str, Any]:
        """For a snapshot of the book."""
        return {"by_run": [asdict(one) for one in self.by_run.values()], "said": self.said, "count": self.count}

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Self:
        """What `dump` gave, as JSON has it."""
        asked = cls()
        for one in told.get("by_run", ()):
            roles, rules = tuple(one["roles"]), tuple(one["rules"])
            asked.by_run[one["run"]] = Pending(**{**one, "roles": roles, "rules": rules})
        asked.said = {submission: dict(said) for submission, said in told.get("said", {}).items()}
        asked.count = told.get("count", 0)
        return asked


_SECONDS = len("2026-11-22T10:00:00")  # the part that both spellings of a time share
