"""A charge, checked: is the plan the submission that it names, does it cost what was charged, could the account pay.

Everything is taken from the plan's own text and recomputed; what the entry says of itself is only compared.
"""

import hashlib
import math
from decimal import Decimal

from ..budget.charge import charged_events
from ..budget.events import Events
from ..errors import UsageError
from ..submission import Submission
from .bodies import Charged, RecoveredCharge
from .history import Account, History, Run
from .recomputed import SAME_DIVERGENCE, SAME_EPSILON, Cost, Recomputation, renyi_budget
from .violations import Findings

_STRENGTH = {"record": 1, "group": 2, "node": 3}


class ChargeAuditor:
    """Checks charges one after the other, and adds them to the history."""

    def __init__(self, history: History, recomputation: Recomputation, findings: Findings) -> None:
        self._history = history
        self._recomputation = recomputation
        self._findings = findings

    def audit(self, entry: int, time: str, body: Charged) -> Submission | None:
        """Check a charge against its plan and its account, and spend it; give its submission, if that can be read."""
        submission = self._submission(entry, body)
        account = self._history.accounts.get(body.account)
        if submission is not None:
            self._check_mechanism(entry, submission)
            self._check_terms(entry, body, submission)
            self._check_cost(entry, body, submission, account)
        if account is None:
            self._findings.add(entry, "account", f"a charge to account {body.account}, which is not open")
        else:
            self._check_account(entry, body, account)
        self._check_dataset(entry, body)
        # A run that was charged before a restore and again after it is recovered beside itself: both were spent.
        first = (self._history.runs.get(body.run) or self._history.apps.get(body.run)) if _is_new(body) else None
        if first is not None:
            self._findings.add(entry, "charged-twice", f"run {body.run} was admitted in entry {first.entry}")
        if isinstance(body, RecoveredCharge):
            self._history.recovered[body.run, body.submission] += 1
        if body.run not in self._history.runs:
            self._history.runs[body.run] = _run(entry, time, body, submission)
        elif isinstance(body, RecoveredCharge):
            self._history.runs[body.run].is_recovered = True
        if account is not None:
            _spend(account, body, entry)
            account.mark(entry, time, body.run)
        return submission

    def _submission(self, entry: int, body: Charged) -> Submission | None:
        text = body.plan.encode()
        if hashlib.sha256(text).hexdigest() != body.submission:
            self._findings.add(entry, "submission", "the plan's text does not have the hash that the charge names")
        try:
            return Submission.from_bytes(text)
        except UsageError as error:
            self._findings.add(entry, "submission", error.message)
            return None

    def _check_mechanism(self, entry: int, submission: Submission) -> None:
        opening = self._history.opening
        is_simulation = opening is not None and opening.purpose == "simulation"
        if submission.plan.privacy.is_central and not is_simulation:
            why = (
                "a deployment was charged for unit 'node', whose noise is added where this institution cannot check it"
            )
            self._findings.add(entry, "unit", why)

    def _check_terms(self, entry: int, body: Charged, submission: Submission) -> None:
        privacy = submission.plan.privacy
        delta = Decimal(1) if privacy.delta is None else Decimal(repr(privacy.delta))
        for name, charged, planned in (
            ("run", body.run, submission.run_id),
            ("unit", body.unit, privacy.unit),
            ("delta", body.delta, delta),
            ("expiry", body.expires, submission.body.expires),
        ):
            if charged != planned:
                self._findings.add(entry, "terms", f"{name} {charged}, its plan says {planned}")
        if submission.claim is not None and body.delta * body.declared_size >= 1:
            why = f"delta {body.delta} is not below 1 / declared size = 1 / {body.declared_size}"
            self._findings.add(entry, "delta-too-large", why)

    def _check_cost(self, entry: int, body: Charged, submission: Submission, account: Account | None) -> None:
        claim, delta = submission.claim, submission.plan.privacy.delta
        if claim is None or delta is None:
            if body.epsilon.is_finite():
                self._findings.add(entry, "epsilon", f"charged {body.epsilon}; a plan without a claim costs infinity")
            if body.events:
                self._findings.add(entry, "events", "a plan without a claim has no events")
            return
        events = charged_events(submission.plan, claim.noise_multiplier)
        if [event.model_dump() for event in body.events] != [event.as_json() for event in events]:
            self._findings.add(entry, "events", "charged for other events than its plan has")
        cost = self._recomputation.cost(events, delta)
        self._compare(entry, body, cost)
        claimed = Decimal(repr(claim.epsilon))
        if cost.epsilon is not None and cost.epsilon > claimed + SAME_EPSILON:
            self._findings.add(entry, "epsilon", f"its plan costs {cost.epsilon}, and claims {claimed}")
        if account is not None:
            self._compare_divergence(entry, body, events, account)

    def _compare(self, entry: int, body: Charged, cost: Cost) -> None:
        for problem in cost.problems:
            if cost.epsilon is None:
                self._findings.add(entry, "epsilon", f"its cost cannot be recomputed: {problem}")
            else:
                self._findings.note(f"entry {entry}: {problem}")
        if cost.epsilon is None:
            return
        if not body.epsilon.is_finite() or abs(body.epsilon - cost.epsilon) > SAME_EPSILON:
            side = "less than" if body.epsilon < cost.epsilon else "more than"
            why = f"charged epsilon {body.epsilon} at delta {body.delta}, {side} PLD's {cost.epsilon}"
            self._findings.add(entry, "epsilon", why)
        elif body.epsilon != cost.epsilon:
            self._findings.note(f"entry {entry}: charged {body.epsilon}, recomputed {cost.epsilon}: rounding")
        if float(cost.epsilon) > cost.bound_on_grid:
            why = f"PLD gives {cost.epsilon}, above {cost.bound_on_grid:.6f}, the upper bound by RDP"
            self._findings.add(entry, "accountants", why)
        if cost.lower is not None and not float(body.epsilon) >= cost.lower:
            why = f"charged {body.epsilon}, below {cost.lower:.6f}, a lower estimate of what it costs"
            self._findings.add(entry, "accountants", why)

    def _compare_divergence(self, entry: int, body: Charged, events: Events, account: Account) -> None:
        expected = self._recomputation.divergence(events, account.alpha) if account.alpha is not None else 0.0
        if not math.isfinite(expected):
            is_same = not body.divergence.is_finite()
        else:
            slack = SAME_DIVERGENCE + Decimal(expected) * Decimal("1e-9")
            is_same = body.divergence.is_finite() and abs(body.divergence - Decimal(expected)) <= slack
        if not is_same:
            order = f"of order {account.alpha}" if account.alpha is not None else "(the account is additive)"
            why = f"charged divergence {body.divergence}, recomputed {expected:.9f} {order}"
            self._findings.add(entry, "divergence", why)

    def _check_account(self, entry: int, body: Charged, account: Account) -> None:
        is_recovered = isinstance(body, RecoveredCharge)
        if account.closed is not None and not is_recovered:
            why = f"account {account.name} was closed in entry {account.closed}"
            self._findings.add(entry, "account-closed", why)
        if body.unit == "none":
            if not account.allows_none:
                self._findings.add(entry, "unit", f"account {account.name} admits no plan without a claim")
            return
        if _STRENGTH[body.unit] < _STRENGTH[account.unit]:
            why = f"account {account.name} protects each {account.unit}, the plan only each {body.unit}"
            self._findings.add(entry, "unit", why)
        if account.voided is not None and not is_recovered:
            self._findings.add(entry, "account-void", f"account {account.name} was void since entry {account.voided}")
        elif problem := _excess(account, body):
            self._findings.add(entry, "account-exceeded", f"account {account.name}: {problem}")

    def _check_dataset(self, entry: int, body: Charged) -> None:
        dataset = self._history.datasets.get(body.dataset)
        if isinstance(body, RecoveredCharge):
            return  # it was declared in the ledger that was lost
        if dataset is None:
            self._findings.add(entry, "dataset", f"data set {body.dataset} was not offered")
            return
        if dataset.account != body.account:
            why = f"data set {body.dataset} belongs to account {dataset.account}, not {body.account}"
            self._findings.add(entry, "dataset", why)
        if dataset.declared_size != body.declared_size:
            why = f"declared size {body.declared_size}; data set {body.dataset} declares {dataset.declared_size}"
            self._findings.add(entry, "terms", why)


def _is_new(body: Charged) -> bool:
    return not isinstance(body, RecoveredCharge)


def _excess(account: Account, body: Charged) -> str:
    """Why the account's filter did not allow the charge at that moment; empty where it did."""
    if not body.epsilon.is_finite() or not body.divergence.is_finite():
        return "a charge without a bound"
    if account.alpha is not None:
        sum_, limit = (
            account.spent_divergence + body.divergence,
            renyi_budget(account.epsilon, account.delta, account.alpha),
        )
        if sum_ > limit:
            return f"divergence {sum_} of {limit:.9f} at order {account.alpha}, for epsilon {account.epsilon}"
        return ""
    epsilon, delta = account.spent_epsilon + body.epsilon, account.spent_delta + body.delta
    if epsilon > account.epsilon:
        return f"epsilon {epsilon} of {account.epsilon}, at delta {delta}"
    return f"delta {delta} of {account.delta}" if delta > account.delta else ""


def _spend(account: Account, body: Charged, entry: int) -> None:
    if body.unit == "none" or not body.epsilon.is_finite() or not body.divergence.is_finite():
        account.voided = account.voided or entry
        return
    account.spent_epsilon += body.epsilon
    account.spent_delta += body.delta
    account.spent_divergence += body.divergence


def _run(entry: int, time: str, body: Charged, submission: Submission | None) -> Run:
    return Run(
        name=body.run,
        submission_hash=body.submission,
        submission=submission,
        dataset=body.dataset,
        declared_size=body.declared_size,
        account=body.account,
        unit=body.unit,
        epsilon=body.epsilon,
        delta=body.delta,
        divergence=body.divergence,
        expires=body.expires,
        entry=entry,
        time=time,
        accountant=body.accountant,
        is_recovered=isinstance(body, RecoveredCharge),
        last_time=time,
    )
