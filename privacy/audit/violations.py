"""What an audit finds: violations, each named by a short code and its entry. The list of codes is closed."""

from collections import Counter
from dataclasses import dataclass, field

# Violations that are kept in full; a chain signed by another key has one an entry, and a page must stay readable.
MOST_VIOLATIONS = 1000

# Code -> what it means, in plain words. The codes are public: scripts match them.
CODES = {
    "unreadable": "a row that is not an entry: wrong types, or larger than any entry can be",
    "numbering": "entries are missing, repeated or out of order",
    "previous": "an entry does not follow the one before it",
    "hash": "an entry was changed after it was written",
    "signature": "an entry was not signed by this institution",
    "clock-set-back": "an entry is older than the one before it",
    "malformed": "an entry does not say what its kind must say",
    "unknown-kind": "an entry of a kind that this format does not have",
    "opening": "the ledger does not begin, once, with its opening",
    "other-key": "the ledger names another key than the one that was given",
    "account": "an account that was opened, raised or closed against the rules",
    "dataset": "a data set that was declared or removed against the rules",
    "submission": "a charge whose plan is not the submission that it names",
    "terms": "a charge whose run, unit, delta, expiry or size is not what plan and account say",
    "events": "a charge for other events than the plan has",
    "epsilon": "a charge of another epsilon than its plan costs",
    "divergence": "a charge of another Renyi divergence than its plan costs",
    "accountants": "two accountants that contradict each other on a charge",
    "delta-too-large": "a delta that is not below one over the declared size",
    "unit": "a plan whose unit the account, or the ledger's purpose, does not offer",
    "unsigned": "a run of a deployment without the operator who signed for it",
    "operator": "an operator whose signature, name, key, certificate or time does not hold",
    "undecided": "a charge, request, answer or app's run that the policy did not permit right before it",
    "policy": "a policy that is not what its hash names, does not validate, or decided before it was entered",
    "decision": "a decision that the policy does not make of the facts that stand beside it",
    "facts": "a decision that was made on other facts than the ledger's",
    "charged-twice": "a run that was charged more than once",
    "account-exceeded": "a charge that the account could not pay",
    "account-void": "a charge to an account that was void",
    "account-closed": "a charge to an account that was closed",
    "lost": "a number given up that no recovery had to give up",
    "release": "a charge given back that had begun, or had not expired",
    "begin": "a request begun that was not charged, or begun before",
    "beyond-charge": "more requests begun than were charged",
    "answer": "an answer to a request that had not begun, or was answered before",
    "execution": "a trainer that did something else than the plan says",
    "witness-entry": "a countersignature in the ledger that does not hold",
    "witness-signature": "a witnessed head that is not signed by both sides",
    "witness-key": "a witness with more than one server key",
    "replaced": "the witness saw another ledger than this one",
    "truncated": "the ledger ends before an entry that was witnessed: rolled back or truncated",
    "forked": "the ledger has another entry than the one that was witnessed",
    "lost-charge": "a charge that was witnessed is not in the ledger",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be. `entry`: its number, None where it concerns the whole file."""

    entry: int | None
    code: str
    why: str

    def __str__(self) -> str:
        place = "ledger" if self.entry is None else f"entry {self.entry}"
        return f"{place}: {self.code}: {self.why}"


@dataclass(slots=True)
class Findings:
    """Violations and notes as they are found; `counts` knows all of them, the list holds the first of each code."""

    violations: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, entry: int | None, code: str, why: str) -> None:
        """Keep a violation. Of each code at most `MOST_VIOLATIONS` are kept, all are counted."""
        if code not in CODES:
            raise ValueError(f"{code!r} is not a code of a violation")
        self.counts[code] += 1
        if self.counts[code] <= MOST_VIOLATIONS:
            self.violations.append(Violation(entry, code, shortened(why)))

    def note(self, words: str) -> None:
        """Keep something worth knowing that breaks no rule; the same words once."""
        if words not in self.notes and len(self.notes) < MOST_VIOLATIONS:
            self.notes.append(shortened(words))


_LONGEST = 400  # characters of one line; what a hostile file says may be of any length


def shortened(words: str) -> str:
    """One line of printable characters, of bounded length."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words[: 2 * _LONGEST])
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
