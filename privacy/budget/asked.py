"""Asked: which submissions a person was asked to approve, and what was said. A part of the book (book.py).

The rules:
1. What is asked about is a submission, not a run: several may bear one run id, and a word is about one of them.
2. A submission waits while the policy's newest decision on it is `pending`, and no role has refused it.
3. The last word of each role counts, until the submission is admitted: a mistaken rejection is taken back by an
   approval, and an approval by a rejection. Both stay in the ledger. A denial ends the waiting, and no word: what was
   approved can still be rejected. What was admitted is ended by `privet node withdraw`.
4. Once a submission is admitted, no other of its run id can be.
5. What has expired can be approved no more, unless it was charged before: such a run goes on. It is remembered for
   `REMEMBERED`, so that nobody takes the next submission of the run id for it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, Self

Said = Literal["approved", "refused"]
Subject = tuple[str, str]  # run, submission
REMEMBERED = timedelta(days=7)  # longer than anybody thinks about a plan that was shown


@dataclass(frozen=True, slots=True)
class Pending:
    """A submission that a person was asked about, first at `since`. `plan`: its canonical text, as it was signed.

    `roles`: whose approval it needs, or has; `rules`: the ids of the rules that ask for it. `is_charged`: it was, and
    does not expire. `is_denied`: the policy has denied it since, so that it waits for nobody.
    """

    run: str
    submission: str
    operator: str
    roles: tuple[str, ...]
    rules: tuple[str, ...]
    plan: str
    since: str
    expires: str
    is_charged: bool = False
    is_denied: bool = False

    def is_expired_at(self, moment: str) -> bool:
        """Whether it is too late. `moment`: UTC, as an entry has it."""
        return not self.is_charged and self.expires[:_SECONDS] <= moment[:_SECONDS]


class Asked:
    """`open`: every submission that a person was asked about, and that is not over. `said`: of each, by its hash.

    `count`: how many words were said; another whenever somebody has spoken.
    """

    def __init__(self) -> None:
        self.open: dict[Subject, Pending] = {}
        self.said: dict[str, dict[str, str]] = {}
        self.count = 0

    @property
    def waiting(self) -> dict[Subject, Pending]:
        """Those that still wait for somebody."""
        return {
            subject: asked
            for subject, asked in self.open.items()
            if not asked.is_denied and self.missing(asked) and not self.refusers(asked)
        }

    def of_run(self, run: str) -> tuple[Pending, ...]:
        """Every submission of a run id that somebody was asked about, in order."""
        return tuple(asked for (name, _), asked in self.open.items() if name == run)

    def is_asked_about(self, run: str, submission: str) -> bool:
        """Whether a person can answer to it, and it is listed."""
        asked = self.open.get((run, submission))
        return asked is not None and not asked.is_denied

    def missing(self, asked: Pending) -> tuple[str, ...]:
        """The roles whose approval it lacks."""
        said = self.said.get(asked.submission, {})
        return tuple(role for role in asked.roles if said.get(role) != "approved")

    def refusers(self, asked: Pending) -> tuple[str, ...]:
        """The roles that have refused it."""
        said = self.said.get(asked.submission, {})
        return tuple(role for role, verdict in sorted(said.items()) if verdict == "refused")

    def decide(self, content: Mapping[str, Any], time: str, *, is_admission: bool, is_charged: bool) -> None:
        """Fold a `decision` entry. `is_charged`: its submission was."""
        subject, verdict = (content["run"], content["submission"]), content["verdict"]
        if verdict == "pending":
            self._ask(subject, content, time, is_charged)
        elif verdict == "permitted" and is_admission:
            self.forget(content["run"])
        elif is_admission and subject in self.open:
            self.open[subject] = replace(self.open[subject], is_denied=True)

    def forget(self, run: str) -> None:
        """Nothing of this run id can be admitted any more."""
        self.open = {subject: asked for subject, asked in self.open.items() if subject[0] != run}

    def answer(self, content: Mapping[str, Any]) -> None:
        """Fold an `approval` entry."""
        self.said.setdefault(content["submission"], {})[content["role"]] = content["verdict"]
        self.count += 1

    def _ask(self, subject: Subject, content: Mapping[str, Any], time: str, is_charged: bool) -> None:
        oldest = (datetime.fromisoformat(time[:_SECONDS]) - REMEMBERED).isoformat()
        self.open = {known: asked for known, asked in self.open.items() if not asked.is_expired_at(oldest)}
        run, submission = subject
        before = self.open.get(subject)
        roles, since = set(content["approvals"].split()), time
        if before is not None:
            roles |= set(before.roles) & set(self.said.get(submission, {}))  # who has spoken may speak again
            since = before.since
        self.open[subject] = Pending(
            run=run,
            submission=submission,
            operator=content["operator"],
            roles=tuple(sorted(roles)),
            rules=tuple(content["rules"].split()),
            plan=content["plan"],
            since=since,
            expires=json.loads(content["plan"])["expires"],
            is_charged=is_charged,
        )

    def dump(self) -> dict[str, Any]:
        """For a snapshot of the book."""
        return {"open": [asdict(one) for one in self.open.values()], "said": self.said, "count": self.count}

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Self:
        """What `dump` gave, as JSON has it."""
        asked = cls()
        for one in told.get("open", ()):
            roles, rules = tuple(one["roles"]), tuple(one["rules"])
            asked.open[one["run"], one["submission"]] = Pending(**{**one, "roles": roles, "rules": rules})
        asked.said = {submission: dict(said) for submission, said in told.get("said", {}).items()}
        asked.count = told.get("count", 0)
        return asked


_SECONDS = len("2026-11-22T10:00:00")  # the part that both spellings of a time share
