"""Admission: what a submission costs an account, and whether the institution's own rules let it in.

Values in, a Charge or a refusal out: rules 3 to 5 of the guard (guard.py), who asks here and writes down the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from ..errors import Refusal, RefusedError
from ..plan import Plan
from ..submission import Claim, Submission
from .accounting import ACCOUNTANT, epsilon_of, rounded_up
from .accounts import UNITS
from .book import INFINITE, Account, DeclaredDataset
from .charge import charged_events
from .events import RELATION, Events
from .filters import renyi_cost, renyi_limit


@dataclass(frozen=True, slots=True)
class Charge:
    """What a submission costs an account. `divergence`: at the order of a renyi filter, else 0."""

    epsilon: Decimal
    delta: Decimal
    divergence: Decimal
    events: Events

    def body(self, submission: Submission, dataset: DeclaredDataset) -> Mapping[str, str | Sequence[Mapping[str, str]]]:
        """The entry, once it is charged."""
        body: dict[str, str | Sequence[Mapping[str, str]]] = {
            "run": submission.run_id,
            "submission": submission.hash,
            "plan": submission.canonical.decode(),
            "dataset": dataset.name,
            "declared_size": str(dataset.declared_size),
            "account": dataset.account,
            "unit": submission.plan.privacy.unit,
            "epsilon": str(self.epsilon),
            "delta": str(self.delta),
            "divergence": str(self.divergence),
            "expires": submission.body.expires,
            "events": [event.as_json() for event in self.events],
        }
        return body | ({"relation": RELATION, "accountant": ACCOUNTANT} if self.events else {})


def cost_of(submission: Submission, account: Account, now: datetime) -> Charge:
    """What the submission costs the account; raise RefusedError where it is not valid now."""
    plan, claim = submission.plan, submission.claim
    _check_time(submission, now)
    if claim is None or plan.privacy.delta is None:
        return Charge(INFINITE, Decimal(1), Decimal(0), ())
    return _charge(plan, claim, plan.privacy.delta, account)


def check_charge(submission: Submission, dataset: DeclaredDataset, account: Account, charge: Charge) -> None:
    """Raise RefusedError where the account does not admit the submission at this cost."""
    plan, claim = submission.plan, submission.claim
    if account.is_closed:
        raise RefusedError(Refusal.ACCOUNT_CLOSED, f"account {account.name} is closed", "use another data set")
    _check_unit(plan, account)
    if claim is None or plan.privacy.delta is None:
        return
    _check_delta(plan.privacy.delta, dataset.declared_size)
    if charge.epsilon > Decimal(repr(claim.epsilon)):  # the decimal that the submission shows, not its double
        raise RefusedError(
            Refusal.EPSILON_ABOVE_CLAIM,
            f"what is asked costs epsilon {charge.epsilon}, the submission claims {claim.epsilon}",
            "submit the plan again with a noise multiplier that keeps the claim",
        )
    _check_budget(account, charge)


def weighed(submission: Submission, dataset: DeclaredDataset, account: Account, now: datetime) -> Charge:
    """What the submission costs the account; raise RefusedError where it may not be admitted."""
    charge = cost_of(submission, account, now)
    check_charge(submission, dataset, account, charge)
    return charge


def _charge(plan: Plan, claim: Claim, delta: float, account: Account) -> Charge:
    events = charged_events(plan, claim.noise_multiplier)
    divergence = renyi_cost(events, account.alpha) if account.alpha is not None else Decimal(0)
    return Charge(rounded_up(epsilon_of(events, delta)), Decimal(repr(delta)), divergence, events)


def _check_time(submission: Submission, now: datetime) -> None:
    if not submission.is_valid_at(now):
        raise RefusedError(
            Refusal.NOT_VALID_NOW,
            f"the submission is valid from {submission.body.not_before} to {submission.body.expires}",
            "submit the plan again, and check both clocks",
        )


def _check_unit(plan: Plan, account: Account) -> None:
    unit = plan.privacy.unit
    if unit == "none":
        if not account.allows_none:
            raise RefusedError(
                Refusal.UNIT_NOT_OFFERED,
                f"account {account.name} admits no plan without a claim",
                "ask for a unit, or open an account with --allow-none",
            )
    elif UNITS.index(unit) < UNITS.index(account.unit):
        raise RefusedError(
            Refusal.UNIT_NOT_OFFERED,
            f"account {account.name} protects each {account.unit}, the plan only each {unit}",
            f"submit a plan with unit {account.unit}",
        )


def _check_delta(delta: float, declared_size: int) -> None:
    if Decimal(repr(delta)) * declared_size >= 1:
        raise RefusedError(
            Refusal.DELTA_TOO_LARGE,
            f"delta {delta:g} is not below 1 / declared size = 1 / {declared_size} = {1 / declared_size:.3g}",
            "ask for a smaller delta, well below one over the number of records",
        )


def _check_budget(account: Account, charge: Charge) -> None:
    """The filter: what was spent and this charge together stay within the account."""
    if account.is_void:
        raise RefusedError(
            Refusal.BUDGET_EXHAUSTED,
            f"account {account.name} is void: a run without a claim was admitted to it",
            "use a data set of another account",
        )
    if account.filter == "renyi" and account.alpha is not None:
        limit = renyi_limit(account.epsilon, account.delta, account.alpha)
        fits = account.spent_divergence + charge.divergence <= limit
        told = f"divergence {charge.divergence} on {account.spent_divergence} of {limit} (order {account.alpha})"
    else:
        fits = (
            account.spent_epsilon + charge.epsilon <= account.epsilon
            and account.spent_delta + charge.delta <= account.delta
        )
        told = (
            f"epsilon {charge.epsilon} on {account.spent_epsilon} of {account.epsilon}, "
            f"delta {charge.delta} on {account.spent_delta} of {account.delta}"
        )
    if not fits:
        raise RefusedError(
            Refusal.BUDGET_EXHAUSTED,
            f"account {account.name} cannot pay: {told}",
            f"privet budget show {account.name}; a raise is a new, larger claim",
        )
