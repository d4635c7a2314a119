"""What a plan does to records: the events that are charged before it begins, and those that were carried out.

Unit `record`: each local step is a sampled Gaussian at the node. Unit `node`: each round is one, at the server, over a
Poisson sample of the nodes; how often a node steps, and on which of its records, is then all inside one node's update.
"""

from decimal import Decimal

from ..plan import Plan
from .accounting import epsilon_of, rounded_up
from .events import Events, SampledGaussian, merged


def charged_events(plan: Plan, noise_multiplier: float) -> Events:
    """All that the plan may ever ask of one node: rounds, spare rounds and evaluations. At unit `node`: all rounds."""
    return executed_events(plan, noise_multiplier, plan.attempts_charged, plan.evaluations_charged)


def executed_events(plan: Plan, noise_multiplier: float, attempts: int, evaluations: int) -> Events:
    """What `attempts` training requests and `evaluations` evaluations did, begun ones counted as done.

    At unit `node`: what so many rounds did.
    """
    training = SampledGaussian(noise_multiplier, sampling_rate_of(plan), noisy_steps(plan, attempts))
    return merged((training, *evaluation_events(plan, evaluations)))


def sampling_rate_of(plan: Plan) -> float:
    """The chance with which a unit takes part in a noisy step: a record in a batch, or a node in a round."""
    return plan.aggregation.fraction if plan.privacy.is_central else plan.privacy.sampling_rate


def noisy_steps(plan: Plan, attempts: int) -> int:
    """How many noisy sums `attempts` training requests, or rounds at unit `node`, release."""
    return attempts if plan.privacy.is_central else attempts * plan.training.local_steps


def executed_epsilon(plan: Plan, noise_multiplier: float, attempts: int, rounds: int) -> Decimal | None:
    """What `attempts` training requests and the evaluations of `rounds` rounds cost a node: epsilon at the plan's delta
    and unit, neighbours add or remove one unit, by PLD, rounded up. None without a claim. At unit `node`, `attempts`
    are rounds.

    It holds as if the schedule was fixed in advance; what is charged and enforced is the claim. Some 30 ms.
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
