"""What a plan does to records: the events that are charged before it begins, and those that were carried out."""

from decimal import Decimal

from ..plan import Plan
from .accounting import epsilon_of, rounded_up
from .events import Events, SampledGaussian, merged


def charged_events(plan: Plan, noise_multiplier: float) -> Events:
    """All that the plan may ever ask of one node: rounds, spare rounds and evaluations."""
    return executed_events(plan, noise_multiplier, plan.attempts_charged, plan.evaluations_charged)


def executed_events(plan: Plan, noise_multiplier: float, attempts: int, evaluations: int) -> Events:
    """What `attempts` training requests and `evaluations` evaluations did, begun ones counted as done."""
    training = SampledGaussian(noise_multiplier, plan.privacy.sampling_rate, attempts * plan.training.local_steps)
    return merged((training, *evaluation_events(plan, evaluations)))


def executed_epsilon(plan: Plan, noise_multiplier: float, attempts: int, rounds: int) -> Decimal | None:
    """What `attempts` training requests and the evaluations of `rounds` rounds cost a node: epsilon at the plan's delta
    and unit, neighbours add or remove one unit, by PLD, rounded up. None without a claim.

    It holds as if the schedule was fixed in advance; what is charged and enforced is the claim. Some 50 ms.
    """
    if plan.privacy.delta is None:
        return None
    evaluations = rounds // plan.evaluation.every if plan.evaluation else 0
    events = executed_events(plan, noise_multiplier, attempts, evaluations)
    return rounded_up(epsilon_of(events, plan.privacy.delta))


def evaluation_events(plan: Plan, evaluations: int) -> Events:
    """One Gaussian on the vector of sums for each evaluation; every record takes part, so nothing is amplified."""
    if plan.evaluation is None or plan.evaluation.noise_multiplier is None or evaluations == 0:
        return ()
    return (SampledGaussian(plan.evaluation.noise_multiplier, 1.0, evaluations),)
