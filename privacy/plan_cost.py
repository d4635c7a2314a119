"""What a plan will cost, before anybody is asked."""

from dataclasses import asdict, dataclass
from decimal import Decimal

from .budget.accounting import ACCOUNTANT, epsilon_of, epsilon_upper_bound, rounded_up
from .budget.charge import charged_events, evaluation_events, executed_events, noisy_steps, sampling_rate_of
from .budget.events import RELATION
from .plan import Plan
from .submission import claim_of

# After which parts of the rounds the table of `plan show` says what has been executed.
_PARTS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class PlanCost:
    """Per node. Every epsilon at `delta`, per `unit`, by `relation`. `by_round`: executed after so many rounds."""

    unit: str
    relation: str
    delta: float
    noise_multiplier: float
    sampling_rate: float
    clip_norm: float
    epsilon: Decimal
    epsilon_claimed: float
    epsilon_rdp_bound: float
    epsilon_evaluation_alone: Decimal
    steps_charged: int
    evaluations_charged: int
    by_round: dict[int, Decimal]
    accountant: str = ACCOUNTANT

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        told = asdict(self) | {"by_round": {str(r): float(epsilon) for r, epsilon in self.by_round.items()}}
        return {key: float(value) if isinstance(value, Decimal) else value for key, value in told.items()}


def cost_of(plan: Plan) -> PlanCost | None:
    """The cost of a plan that makes a claim, else None. Raises PlanError where no noise reaches its epsilon."""
    claim, delta, clip_norm = claim_of(plan), plan.privacy.delta, plan.privacy.clip_norm
    if claim is None or delta is None or clip_norm is None:
        return None
    noise = claim.noise_multiplier

    def executed_after(rounds: int) -> Decimal:
        evaluations = rounds // plan.evaluation.every if plan.evaluation else 0
        attempts = min(rounds, plan.attempts_charged)
        return rounded_up(epsilon_of(executed_events(plan, noise, attempts, evaluations), delta))

    rounds = sorted({max(1, round(part * plan.run.rounds)) for part in _PARTS})
    return PlanCost(
        unit=plan.privacy.unit,
        relation=RELATION,
        delta=delta,
        noise_multiplier=noise,
        sampling_rate=sampling_rate_of(plan),
        clip_norm=clip_norm,
        epsilon=rounded_up(epsilon_of(charged_events(plan, noise), delta)),
        epsilon_claimed=claim.epsilon,
        epsilon_rdp_bound=epsilon_upper_bound(charged_events(plan, noise), delta),
        epsilon_evaluation_alone=rounded_up(epsilon_of(evaluation_events(plan, plan.evaluations_charged), delta)),
        steps_charged=noisy_steps(plan, plan.attempts_charged),
        evaluations_charged=plan.evaluations_charged,
        by_round={number: executed_after(number) for number in rounds},
    )
