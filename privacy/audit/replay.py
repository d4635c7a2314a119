"""Replay: read a ledger from its first entry, trust nothing in it, and say everything that is wrong.

It needs the file, the institution's public key and the witness; without a key a ledger is at best consistent with
itself, and without a witness its end may have been cut off. Snapshots are ignored. Nothing that the guard computed is
believed: sums are added anew (`history.py`), costs are recomputed from the plans' own texts (`charges.py`,
`recomputed.py`). A hostile file makes violations or a LedgerError, never a traceback.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..budget.ledger import FORMAT, Entry
from ..errors import LedgerError
from .bodies import (
    KINDS,
    AccountOpened,
    Answered,
    AppRan,
    Approved,
    Begun,
    Body,
    Charged,
    Closed,
    DatasetAdded,
    DatasetRemoved,
    Decided,
    Lost,
    MalformedBodyError,
    Opened,
    OperatorChecked,
    PolicyEntered,
    Raised,
    Recovered,
    Refused,
    Released,
    Witnessed,
    read_body,
)
from .chain import Chain
from .charges import ChargeAuditor
from .decisions import DecisionAuditor
from .declarations import DeclarationAuditor
from .history import History, Refusal
from .operators import OperatorAuditor
from .reading import LedgerFile, opened
from .recomputed import LowerEstimate, Recomputation
from .rounds import RoundAuditor
from .violations import Findings, Violation
from .witnessed import WitnessAuditor, WitnessFound

Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 250  # entries, some 40 ms


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found. `violations` holds at most 1000 of each code, `counts` knows how many there are.

    `public_key`: what the signatures were checked against; `is_key_given`: whether it came from outside of the file.
    `is_root_given`: whether operators' certificates were checked up to the federation's root.
    `witness`: None where none was given. `checks`: how many accountants besides PLD and RDP looked at each charge.
    """

    path: Path
    entries: int
    head: Entry | None
    public_key: str | None
    is_key_given: bool
    is_root_given: bool
    witness: WitnessFound | None
    checks: int
    history: History
    violations: tuple[Violation, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong with what could be checked."""
        return not self.violations

    @property
    def not_witnessed(self) -> int:
        """Entries after the last one that the witness bears out."""
        return self.entries - (self.witness.sequence if self.witness else 0)


def audit_ledger(
    path: Path,
    *,
    public_key: str | None = None,
    witness: Path | None = None,
    root: bytes | None = None,
    progress: Progress | None = None,
    checks: Sequence[LowerEstimate] = (),
) -> Audit:
    """Replay a ledger; raise LedgerError where the file is not one, or of a newer format.

    `public_key`: the institution's, 64 hexadecimal digits, got from the institution and not from the file.
    `root`: the federation's root certificate (PEM), which operators' certificates must lead to.
    `checks`: further accountants, each a lower estimate of epsilon by (events, delta).
    """
    with opened(path) as file:
        replay = _Replay(file, public_key, witness, root, checks)
        replay.run(progress or (lambda done, total: None))
    chain, findings = replay.chain, replay.findings
    found = replay.witness.finish(chain.hashes, chain.public)
    return Audit(
        path=path,
        entries=file.count,
        head=chain.head,
        public_key=chain.public,
        is_key_given=public_key is not None,
        is_root_given=root is not None,
        witness=found,
        checks=len(checks),
        history=replay.history,
        violations=tuple(findings.violations),
        counts=dict(findings.counts),
        notes=tuple(findings.notes),
    )


class _Replay:
    def __init__(
        self,
        file: LedgerFile,
        given: str | None,
        witness: Path | None,
        root: bytes | None,
        checks: Sequence[LowerEstimate],
    ) -> None:
        self.findings, self.history = Findings(), History()
        named = _named_key(file)
        self.chain = Chain(file, given or named, self.findings)
        self._total, self._given = file.count, given
        self._declarations = DeclarationAuditor(self.history, self.findings)
        self._charges = ChargeAuditor(self.history, Recomputation(checks), self.findings)
        self._operators = OperatorAuditor(root, self.history, self.findings)
        self._decisions = DecisionAuditor(self.history, self.findings)
        self._rounds = RoundAuditor(self.history, self.findings)
        self.witness = WitnessAuditor(witness, self.history, self.findings)

    def run(self, progress: Progress) -> None:
        for number, entry in enumerate(self.chain.entries(), start=1):
            self._read(entry)
            if number % _PROGRESS_EVERY == 0:
                progress(number, self._total)
        self._operators.finish()
        self._decisions.after(None)
        if self.history.opening is None:
            self.findings.add(None, "opening", "the ledger has no opening: it does not say whose it is")
        progress(self._total, self._total)

    def _read(self, entry: Entry) -> None:
        if entry.kind not in KINDS:
            self.findings.add(entry.sequence, "unknown-kind", f"kind {entry.kind!r}")
            return
        try:
            body = read_body(entry.kind, entry.body)
        except MalformedBodyError as error:
            self.findings.add(entry.sequence, "malformed", f"{entry.kind}: {error}")
            return
        self._apply(entry.sequence, entry.time, body)
        self._decisions.after(body)

    def _apply(self, entry: int, time: str, body: Body) -> None:
        match body:
            case Opened():
                self._declarations.opened(entry, body, self._given)
            case AccountOpened():
                self._declarations.account(entry, time, body)
            case Raised():
                self._declarations.raised(entry, time, body)
            case Closed():
                self._declarations.closed(entry, time, body)
            case DatasetAdded():
                self._declarations.dataset(entry, body)
            case DatasetRemoved():
                self._declarations.dataset_removed(entry, body)
            case Charged():
                submission = self._charges.audit(entry, time, body)
                self._decisions.charge(entry, body, submission, self._operators.charge(entry, body, submission))
            case OperatorChecked():
                self._operators.operator(entry, time, body)
            case AppRan():
                self._decisions.app(entry, body, *self._operators.app(entry, time, body))
            case PolicyEntered():
                self._decisions.policy(entry, time, body)
            case Decided():
                self._decisions.decision(entry, time, body)
            case Approved():
                self._decisions.approval(entry, time, body)
            case Released():
                self._rounds.release(entry, time, body)
                self._decisions.release(entry, body)
            case Begun():
                self._rounds.begin(entry, time, body)
                self._decisions.begin(entry, body)
            case Answered():
                self._rounds.answer(entry, time, body)
                self._decisions.answer(entry, body)
            case Witnessed():
                self.witness.entry(entry, body, self.chain.hashes)
            case Recovered():
                self.history.recovered_heads.add((body.head_sequence, body.head_hash))
            case Lost():
                last = max((sequence for sequence, _ in self.history.recovered_heads), default=0)
                if not entry == body.entry <= last:
                    self.findings.add(
                        entry, "lost", f"gives up number {body.entry}; recovered were numbers up to {last}"
                    )
            case Refused():
                self.history.refusals.append(Refusal(entry, time, body))


def _named_key(file: LedgerFile) -> str | None:
    """The key that the first entry names; raise LedgerError where it says that this program cannot read the rest."""
    first = next(file.rows(), None)
    if first is None:
        raise LedgerError("an empty ledger: it has no entries", "give the ledger's file")
    if not isinstance(first, Entry) or first.kind != "opened":
        return None
    try:
        body = read_body("opened", first.body)
    except MalformedBodyError:
        return None
    assert isinstance(body, Opened), "what KINDS gives for it"
    if body.format != FORMAT:
        raise LedgerError(
            f"a ledger of format {body.format}, this program reads {FORMAT}",
            "audit it with the version of privet that wrote it, or a newer one",
        )
    return body.public_key
