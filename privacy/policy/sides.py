"""Sides: a node's policy and a server's have the same commands; what differs between them stands here as `Side`.

`client/policy_side.py` and `server/policy_side.py` say how it is at each; `__main__` gathers both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..home import Home
from .check import Known
from .explain import Explained
from .rules import Rules


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be explained: a plan, as this operator would submit it. `key`: its fingerprint; empty if not given.

    `only`: the one action that is asked about; empty for all.
    """

    plan: Path
    operator: str
    key: str = ""
    overrides: Sequence[str] = ()
    only: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What would happen. `decisions`: each with whose it is (empty for the operator), in the order in which they come.

    `before`: why it is refused before the policy is asked; `after`: why the account refuses what the policy admits,
    `cost`: what it would be charged there. `notes`: whom this trusts, and what was assumed. `remedy`: what permits it.
    `too_few`: why it has no cohort although it is permitted.
    """

    about: str
    decisions: Sequence[tuple[str, Explained]]
    before: str = ""
    after: str = ""
    cost: str = ""
    notes: Sequence[str] = ()
    remedy: str = ""
    too_few: str = ""

    @property
    def is_admitted(self) -> bool:
        """Whether nothing stands in its way."""
        is_permitted = all(one.decision.is_permitted for whose, one in self.decisions if not whose)
        return is_permitted and not (self.before or self.after or self.too_few)

    def lines(self) -> Sequence[str]:
        """For a person: what is decided as an action before it, by the same rules, is told in a line."""
        told, seen, rules = [self.about], dict[object, str](), set[str]()
        if self.before:
            told.append(f"before the policy is asked: refused: {self.before}")
        for whose, one in self.decisions:
            name = f"{one.action} ({whose})" if whose else one.action
            alike = (one.decision.verdict, one.decision.rules, one.near)
            told += [f"{name}: as {seen[alike]}"] if alike in seen else one.lines(name, rules)
            seen.setdefault(alike, name)
            rules |= {said.rule for said in one.said}
        if self.cost or self.after:
            told.append(f"account: refused: {self.after}" if self.after else f"account: {self.cost}")
        told += [f"cohort: {self.too_few}"] if self.too_few else []
        told += [f"note: {note}" for note in self.notes]
        return [*told, f"to permit it: {self.remedy}"] if self.remedy else told

    def as_json(self) -> Mapping[str, Any]:
        """For `--json`."""
        return {
            "is_admitted": self.is_admitted,
            "about": self.about,
            "before": self.before,
            "decisions": [{"whose": whose, **one.as_json()} for whose, one in self.decisions],
            "account": {"refused": self.after, "cost": self.cost},
            "notes": list(self.notes),
            "remedy": self.remedy,
            "too_few": self.too_few,
        }


@dataclass(frozen=True, slots=True)
class Logged:
    """One line of a log. `is_denial`: it kept something from being done. `body`: all that was entered."""

    time: str
    run: str
    text: str
    is_denial: bool
    body: Mapping[str, Any]


# Gives what was entered since it was last asked, oldest first.
LogReader = Callable[[], Iterable[Logged]]


class Side(Protocol):
    """A party's policy."""

    @property
    def name(self) -> Literal["node", "server"]:
        """Whose policy it is."""
        ...

    def is_at(self, home: Home) -> bool:
        """Whether the home is of this side."""
        ...

    def policy(self, home: Home) -> Path:
        """The policy's file."""
        ...

    def needs_no_file(self, home: Home) -> bool:
        """Whether the policy that ships holds where there is no file."""
        ...

    def known(self, home: Home, passphrase: bytes | None) -> Known:
        """What the party knows by name."""
        ...

    def explain(self, home: Home, passphrase: bytes | None, rules: Rules, asked: Asked) -> Report:
        """What would be decided on a plan."""
        ...

    def log(self, home: Home, passphrase: bytes | None) -> LogReader:
        """Reads the decisions that were entered."""
        ...

    def pin(self, home: Home, operator: str, key: str) -> Sequence[str]:
        """Pin an operator's key; give what was done, in lines."""
        ...
