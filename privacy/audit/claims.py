"""What a ledger claims, as values and in plain words: whose records, how well protected, against whom, since when.

Two numbers, never mixed: `epsilon` is what was charged and is enforced; `epsilon_executed` is the PLD of what began,
and holds if the schedule was fixed in advance. Every epsilon comes with its delta, unit and relation. A claim is the
ledger's: it is worth something only where the audit found no violation.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from ..budget.accounting import epsilon_of, rounded_up, shown
from ..budget.charge import executed_events
from ..budget.events import RELATION, Events
from ..budget.signer import TRUST_IN_WORDS
from .history import Account, App, Dataset, History, Raise, Refusal, Run, Signed
from .permissions import permissions_json
from .recomputed import LARGEST_RECOMPUTED
from .replay import Audit
from .violations import shortened

# Schedules whose executed epsilon is computed, a tenth of a second each; what was charged bounds the others too.
MOST_EXECUTED = 60

LOCAL_TRUST = (
    "the mechanism is local: the institution clips and noises each update before it leaves, so each one is private by "
    "itself, against the server, the other institutions and every reader of the model"
)
CENTRAL_TRUST = (
    "the mechanism is central: the server clips each node's update and noises their sum, so the claim holds against "
    "readers of the models and clip norms that it releases; the server sees every update, and each node must trust it"
)
_LOCAL_SAMPLES = (
    "batches are Poisson samples with exactly the stated rate, and noise is fresh and independent at every step"
)
_CENTRAL_SAMPLES = (
    "the nodes of a round are a Poisson sample with exactly the stated rate, known to the server alone, and noise is "
    "fresh and independent in every round"
)
_ASSUMED = (
    "the node ran the program that it names: a ledger proves what the institution recorded, not what its machine did",
    "the institution's signing key was in its own hands only",
    "declared sizes are public, and are not computed from records again",
    "every path is the population that it was declared to be; a copy under another path would be another budget",
)
EXCLUDED = (
    "a person with records in several accounts or institutions is protected by the sum of their epsilons and deltas",
    "a person with several records in one data set is protected less: by about k times epsilon for k records",
    "attacks on the last bits of floating-point noise",
    "timing, and whether an institution answers, refuses or fails",
    "a node against its own administrator, who holds the records anyway",
    "what was read from the records by any program but privet",
)
SIMULATED = (
    "this is a simulation's ledger: its noise may have been seeded, and who knows the seed can subtract it; it is a "
    "rehearsal, and no evidence that any person's records were protected"
)


@dataclass(frozen=True, slots=True)
class RunClaim:
    """A run, as it was charged and as far as it was carried out."""

    run: str
    plan: str
    task: str
    operator: str
    dataset: str
    unit: str
    state: str
    epsilon: Decimal
    epsilon_executed: Decimal | None
    delta: Decimal
    charged: str
    requests_begun: int
    answers: int
    entry: int
    signed: Signed | None


@dataclass(frozen=True, slots=True)
class AccountClaim:
    """What holds for the people behind an account's data sets."""

    name: str
    datasets: tuple[Dataset, ...]
    unit: str
    relation: str
    epsilon: Decimal
    delta: Decimal
    filter: str
    epsilon_spent: Decimal
    delta_spent: Decimal
    is_void: bool
    is_closed: bool
    first_charge: str | None
    last_release: str | None
    runs: tuple[RunClaim, ...]
    raises: tuple[Raise, ...]

    @property
    def terms(self) -> str:
        """What must stand near the epsilon that was spent."""
        return _terms(self.delta_spent, self.unit)

    @property
    def limit_terms(self) -> str:
        """What must stand near the limit."""
        return _terms(self.delta, self.unit)


@dataclass(frozen=True, slots=True)
class Claims:
    """All that a ledger claims."""

    purpose: str | None
    owner: str | None
    accounts: tuple[AccountClaim, ...]
    apps: tuple[App, ...]
    releases: int
    refusals: int
    trust: str
    assumed: tuple[str, ...]
    excluded: tuple[str, ...]


def claims_of(audit: Audit) -> Claims:
    """What the audited ledger claims."""
    history = audit.history
    opening = history.opening
    executed = _Executed()
    return Claims(
        purpose=opening.purpose if opening else None,
        owner=opening.owner if opening else None,
        accounts=tuple(_account(account, history, executed) for account in history.accounts.values()),
        apps=tuple(history.apps.values()),
        releases=len(history.releases),
        refusals=len(history.refusals),
        trust=CENTRAL_TRUST if (is_central := _is_central(history)) else LOCAL_TRUST,
        assumed=(_CENTRAL_SAMPLES if is_central else _LOCAL_SAMPLES, *_ASSUMED),
        excluded=(SIMULATED, *EXCLUDED) if opening is None or opening.purpose == "simulation" else EXCLUDED,
    )


def _is_central(history: History) -> bool:
    """Whether the server's noise is what keeps a claim: then the weaker words stand for the whole ledger."""
    submissions = (run.submission for run in history.runs.values())
    return any(submission.plan.privacy.is_central for submission in submissions if submission is not None)


def verdict(audit: Audit) -> str:
    """The audit in one sentence."""
    total = sum(audit.counts.values())
    found = "holds" if audit.holds else f"{total} violation{'s' if total != 1 else ''}"
    key = "signed by the given key" if audit.is_key_given else "self-consistent only (no key was given)"
    if audit.witness is None:
        witness = "not witnessed"
    else:
        witness = f"witnessed up to entry {audit.witness.sequence}"
        witness += f", {audit.not_witnessed} after it not yet witnessed" if audit.not_witnessed > 0 else ""
    return f"{found}: {audit.entries} entries, {key}, {witness}"


def sentences(claim: AccountClaim) -> list[str]:
    """An account's claim, a fact a line."""
    sets = ", ".join(f"{dataset.name} (declared size {dataset.declared_size})" for dataset in claim.datasets)
    lines = [f"account {claim.name}: the {claim.unit}s of {sets or 'no data set yet'}"]
    if claim.is_void:
        lines.append(
            f"account {claim.name}: void: a run without a claim was admitted; epsilon is infinite, nothing holds"
        )
    else:
        spent, limit = shown(claim.epsilon_spent), shown(claim.epsilon)
        lines.append(f"account {claim.name}: epsilon spent {spent} {claim.terms}")
        lines.append(f"account {claim.name}: epsilon limit {limit} {claim.limit_terms}, filter {claim.filter}")
    if claim.first_charge:
        until = claim.last_release or "nothing released yet"
        lines.append(f"account {claim.name}: {len(claim.runs)} runs charged, from {claim.first_charge} to {until}")
    lines += [
        f"account {claim.name}: raised from epsilon {shown(step.since)} to {shown(step.epsilon)} {claim.limit_terms} "
        f"on {step.time[:10]}, because: {shortened(' '.join(step.because.split()))}; what was decided after seeing "
        "results is covered by the larger only"
        for step in claim.raises
    ]
    return [*lines, *([f"account {claim.name}: closed"] if claim.is_closed else [])]


def as_json(audit: Audit, claims: Claims) -> dict[str, Any]:
    """Audit and claims for scripts; amounts as strings, since they are exact."""
    head = audit.head
    return {
        "format": 1,
        "verdict": verdict(audit),
        "holds": audit.holds,
        "signed_by_given_key": audit.is_key_given,
        "witnessed": audit.witness is not None,
        "not_yet_witnessed": audit.not_witnessed if audit.witness else None,
        "ledger": {
            "file": str(audit.path),
            "purpose": claims.purpose,
            "owner": claims.owner,
            "public_key": audit.public_key,
            "entries": audit.entries,
            "head": {"sequence": head.sequence, "hash": head.hash} if head else None,
        },
        "violations": [asdict(violation) for violation in audit.violations],
        "violation_counts": dict(audit.counts),
        "notes": list(audit.notes),
        "accounts": [_plain(asdict(account)) for account in claims.accounts],
        "operators_checked_to_root": audit.is_root_given,
        "apps": [asdict(app) for app in claims.apps],
        "releases": [_plain(asdict(release)) for release in audit.history.releases],
        "refused": [
            {"entry": refusal.entry, "time": refusal.time, **refusal.told.model_dump()}
            for refusal in audit.history.refusals
        ],
        **permissions_json(audit.history),
        "trust": claims.trust,
        "assumed": list(claims.assumed),
        "excluded": list(claims.excluded),
    }


def _account(account: Account, history: History, executed: "_Executed") -> AccountClaim:
    runs = [run for run in history.runs.values() if run.account == account.name]
    names = {run.name for run in runs}
    last = [release.time for release in history.releases if release.run in names]
    order = f" (order {account.alpha})" if account.alpha is not None else ""
    return AccountClaim(
        name=account.name,
        datasets=tuple(dataset for dataset in history.every_dataset if dataset.account == account.name),
        unit=account.unit,
        relation=account.relation,
        epsilon=account.epsilon,
        delta=account.delta,
        filter=f"{account.filter}{order}",
        epsilon_spent=account.epsilon_spent,
        delta_spent=account.delta_spent,
        is_void=account.voided is not None,
        is_closed=account.closed is not None,
        first_charge=min((run.time for run in runs), default=None),
        last_release=max(last, default=None),
        runs=tuple(_run(run, executed) for run in runs),
        raises=tuple(account.raises),
    )


def _run(run: Run, executed: "_Executed") -> RunClaim:
    submission = run.submission
    begun = len(run.begun)
    state = "carried out" if run.answered else "begun" if begun else "charged"
    state = (
        "given back: it never began" if run.released else "recovered from the witness" if run.is_recovered else state
    )
    return RunClaim(
        run=run.name,
        plan=submission.plan.run.name if submission else "unreadable",
        task=submission.plan.run.task if submission else "unreadable",
        operator=submission.body.operator if submission else "unreadable",
        dataset=run.dataset,
        unit=run.unit,
        state=state,
        epsilon=run.epsilon,
        epsilon_executed=executed.epsilon(run),
        delta=run.delta,
        charged=run.time,
        requests_begun=begun,
        answers=len(run.answered),
        entry=run.entry,
        signed=run.signed,
    )


class _Executed:
    """Executed epsilons, each schedule computed once, and not more than a reader would wait for."""

    def __init__(self) -> None:
        self._known: dict[tuple[Events, float], Decimal | None] = {}

    def epsilon(self, run: Run) -> Decimal | None:
        """The PLD of what began; None where there is no claim, or it was not computed."""
        submission = run.submission
        if submission is None or submission.claim is None or submission.plan.privacy.delta is None or run.is_recovered:
            return None
        delta, plan = submission.plan.privacy.delta, submission.plan
        if run.counts["train"] > plan.attempts_charged or run.counts["evaluate"] > plan.evaluations_charged:
            return None
        if (run.counts["train"], run.counts["evaluate"]) == (plan.attempts_charged, plan.evaluations_charged):
            return run.epsilon
        events = executed_events(plan, submission.claim.noise_multiplier, run.counts["train"], run.counts["evaluate"])
        if not run.epsilon <= Decimal(LARGEST_RECOMPUTED):
            return None
        if (events, delta) not in self._known:
            if len(self._known) >= MOST_EXECUTED:
                return None
            try:
                self._known[events, delta] = rounded_up(epsilon_of(events, delta))
            except (ArithmeticError, ValueError, MemoryError):
                self._known[events, delta] = None
        return self._known[events, delta]


def _terms(delta: Decimal, unit: str) -> str:
    return f"at delta {float(delta):g} (unit: {unit}, {RELATION})"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Decimal) else value


def operator_lines(audit: Audit) -> Sequence[str]:
    """Who asked for runs, with which key, a line for each; and whether that key leads to the federation's root."""
    history = audit.history
    signed = [*(run.signed for run in history.runs.values()), *(app.signed for app in history.apps.values())]
    told = Counter((found.operator, found.key_fingerprint, found.trust) for found in signed if found is not None)
    chain = "certificate checked up to the given root" if audit.is_root_given else "chain not checked: no --root"
    return [
        f"operator {operator}: {count} run{'s' if count != 1 else ''}, key {key}, {TRUST_IN_WORDS[trust]}; {chain}"
        for (operator, key, trust), count in told.items()
    ]


def app_lines(apps: Sequence[App], most: int) -> Sequence[str]:
    """The Flower apps that were run, a line each, the newest last."""
    left = len(apps) - most
    return [
        *([f"app: {left} more before these"] if left > 0 else []),
        *(
            f"app {app.app}: run {app.run} of {app.operator}: made no claim; what it read is not accounted for"
            for app in apps[-most:]
        ),
    ]


def refusal_lines(history: History, most: int) -> Sequence[str]:
    """What was refused and why, a line each, the newest last."""
    newest = history.refusals[-most:]
    left = len(history.refusals) - len(newest)
    return [*([f"refused: {left} more before these"] if left else []), *(_refusal(newest))]


def subject_of(refusal: Refusal) -> str:
    """What was asked for: a data set or an app."""
    told = refusal.told
    return f"data set {told.dataset}" if told.dataset is not None else f"app {told.app}"


def _refusal(refusals: Iterable[Refusal]) -> list[str]:
    return [
        f"refused: run {refusal.told.run} of {refusal.told.operator}, {subject_of(refusal)}: "
        f"{refusal.told.code}: {shortened(' '.join(refusal.told.why.split()))}"
        for refusal in refusals
    ]
