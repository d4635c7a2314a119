"""What was refused on the newest day: a part of the book (book.py), to enter the same thing once and only so much.

The rules:
1. A refusal counts against who asked: the operator whose signature was checked, or, together, all whom nobody vouches
   for. Strangers cannot use up what is kept for operators, nor one operator what is kept for another.
2. What waits for a person counts apart from what was denied: no denial keeps a plan from the person who is to see it.
3. Entries are counted, whatever they are about: also the same thing, entered again.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Self

from ..errors import Refusal

Kind = Literal["pending", "denied", "stranger"]
Subject = tuple[str, str, str]  # run, submission, code or what makes one denial another than the next
# Refusals of what nobody signed whom this institution listens to: the operator that it names is anybody's word.
STRANGERS = frozenset({Refusal.NOT_SIGNED.value, Refusal.OPERATOR_NOT_PINNED.value, Refusal.OPERATOR_REVOKED.value})
# Entries a day, some 600 bytes to 4 kB each: of one operator (of all strangers together), and of all operators.
MOST_OF_ONE: Mapping[Kind, int] = {"pending": 200, "denied": 1000, "stranger": 1000}
MOST_OF_ALL: Mapping[Kind, int] = {"pending": 2000, "denied": 5000, "stranger": 1000}


class RefusedToday:
    """`day`: the newest on which something was refused; `subjects`: what; `entries`: how many, by kind and operator."""

    def __init__(self) -> None:
        self.day = ""
        self.subjects: set[Subject] = set()
        self.entries: Counter[tuple[str, str]] = Counter()

    def note(self, day: str, subject: Subject, kind: Kind, operator: str) -> None:
        """Fold an entry."""
        if day != self.day:
            self.day, self.subjects, self.entries = day, set(), Counter()
        self.subjects.add(subject)
        self.entries[kind, _counted(kind, operator)] += 1

    def has(self, day: str, subject: Subject) -> bool:
        """Whether it was entered on that day."""
        return day == self.day and subject in self.subjects

    def has_room(self, day: str, kind: Kind, operator: str) -> bool:
        """Whether one more may be entered on that day."""
        if day != self.day:
            return True
        of_all = sum(count for (other, _), count in self.entries.items() if other == kind)
        return self.entries[kind, _counted(kind, operator)] < MOST_OF_ONE[kind] and of_all < MOST_OF_ALL[kind]

    def dump(self) -> dict[str, Any]:
        """For a snapshot of the book."""
        entries = [[kind, operator, count] for (kind, operator), count in sorted(self.entries.items())]
        return {"day": self.day, "subjects": sorted(self.subjects), "entries": entries}

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Self:
        """What `dump` gave, as JSON has it."""
        today = cls()
        today.day = told.get("day", "")
        today.subjects = {(run, submission, code) for run, submission, code in told.get("subjects", ())}
        today.entries = Counter({(kind, operator): count for kind, operator, count in told.get("entries", ())})
        return today


def kind_of(code: str) -> Kind:
    """What a refusal with that code counts as."""
    return "stranger" if code in STRANGERS else "denied"


def _counted(kind: Kind, operator: str) -> str:
    return "" if kind == "stranger" else operator
