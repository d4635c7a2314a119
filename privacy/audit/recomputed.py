"""What a charge must have cost, computed anew: by PLD, by RDP as an upper bound, and at the order of a Renyi filter.

Each (events, delta) is computed once: a ledger of many runs has few schedules. The Renyi divergence of an integer order
is computed from its closed form here (Mironov, Talwar and Zhang 2019, "Renyi Differential Privacy of the Sampled
Gaussian Mechanism", equation 6), and the filters' limits from their definitions, so that a defect in what the guard
uses shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ..budget.accounting import PLD_GRID, epsilon_of, epsilon_upper_bound, rounded_up
from ..budget.events import Events, SampledGaussian

# (events, delta) -> an epsilon that no correct charge lies below, computed by other code than the guard's.
LowerEstimate = Callable[[Events, float], float]

# A charge may differ by so much from what is recomputed: another version of a numerics library, another machine.
SAME_EPSILON = Decimal("0.000002")
SAME_DIVERGENCE = Decimal("0.000002")
# PLD's pessimism lets it pass the RDP bound where steps are many and each loses less than a cell of its grid. Rounding
# a loss to the ends of its cell, of width h, adds at most about alpha h^2 / 8 to a step's divergence (Hoeffding's
# lemma): what a Gaussian of noise multiplier 2 / h would. So the bound is computed with one of those for each step, and
# a cell more.
_GRID_NOISE = 2 / PLD_GRID
# Above this no account can pay (accounts.py allows 1000), and PLD would need more memory than a machine has.
LARGEST_RECOMPUTED = 3000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What events cost at a delta. None where it cannot be computed; `problems` then says why.

    `epsilon`: by PLD, rounded up. `bound`: by RDP. `bound_on_grid`: by RDP, what PLD may be at most. `lower`: the
    largest lower estimate of the checks.
    """

    epsilon: Decimal | None
    bound: float
    bound_on_grid: float
    lower: float | None
    problems: tuple[str, ...]


class Recomputation:
    """Costs by (events, delta), each computed once."""

    def __init__(self, checks: Sequence[LowerEstimate] = ()) -> None:
        self._checks = tuple(checks)
        self._costs: dict[tuple[Events, float], Cost] = {}
        self._divergences: dict[tuple[Events, int], float] = {}

    def cost(self, events: Events, delta: float) -> Cost:
        """What the events cost, per PrivacyUnit, add-or-remove-one."""
        known = self._costs.get((events, delta))
        if known is None:
            known = self._costs[events, delta] = self._computed(events, delta)
        return known

    def divergence(self, events: Events, alpha: int) -> float:
        """The Renyi divergence of order `alpha` of all events together."""
        if (events, alpha) not in self._divergences:
            self._divergences[events, alpha] = sum(
                event.count * sampled_gaussian_divergence(event.noise_multiplier, event.sampling_rate, alpha)
                for event in events
            )
        return self._divergences[events, alpha]

    def _computed(self, events: Events, delta: float) -> Cost:
        try:
            bound = epsilon_upper_bound(events, delta)
            rounding = SampledGaussian(_GRID_NOISE, 1.0, sum(event.count for event in events))
            on_grid = epsilon_upper_bound((*events, rounding), delta) + PLD_GRID
        except (ArithmeticError, ValueError, MemoryError) as error:
            return Cost(None, math.inf, math.inf, None, (f"RDP: {error}",))
        if not bound <= LARGEST_RECOMPUTED:
            return Cost(
                None, bound, on_grid, None, (f"an epsilon of about {bound:.3g} is beyond what any account allows",)
            )
        try:
            epsilon = rounded_up(epsilon_of(events, delta))
        except (ArithmeticError, ValueError, MemoryError) as error:
            return Cost(None, bound, on_grid, None, (f"PLD: {error}",))
        lower, problems = None, []
        for check in self._checks:
            try:
                estimate = check(events, delta)
            except (ArithmeticError, ValueError, RuntimeError, MemoryError) as error:
                problems.append(f"a lower estimate could not be computed: {error}")
            else:
                lower = max(estimate, lower if lower is not None else -math.inf)
        return Cost(epsilon, bound, on_grid, lower, tuple(problems))


def sampled_gaussian_divergence(noise_multiplier: float, sampling_rate: float, alpha: int) -> float:
    """The Renyi divergence of integer order `alpha` of one sampled Gaussian: a binomial sum, in logarithms.

    >>> round(sampled_gaussian_divergence(1.0, 1.0, 8), 12)
    4.0
    """
    exponent = 1 / (2 * noise_multiplier**2)
    if sampling_rate == 1:
        return alpha * exponent
    terms = [
        math.lgamma(alpha + 1)
        - math.lgamma(k + 1)
        - math.lgamma(alpha - k + 1)
        + k * math.log(sampling_rate)
        + (alpha - k) * math.log1p(-sampling_rate)
        + (k * k - k) * exponent
        for k in range(alpha + 1)
    ]
    highest = max(terms)
    if not math.isfinite(highest):
        return math.inf
    return max(0.0, (highest + math.log(math.fsum(math.exp(term - highest) for term in terms))) / (alpha - 1))


def renyi_budget(epsilon: Decimal, delta: Decimal, alpha: int) -> Decimal:
    """What divergences of order `alpha` may add up to, for (epsilon, delta) to hold (Canonne et al. 2020, prop. 12)."""
    order = Decimal(alpha)
    return epsilon - ((order - 1) / order).ln() + (delta.ln() + order.ln()) / (order - 1)


def renyi_spent(divergence: Decimal, delta: Decimal, alpha: int) -> Decimal:
    """The epsilon at `delta` that divergences of order `alpha` give; rounded up, never below 0."""
    if divergence <= 0:
        return Decimal(0)
    order = Decimal(alpha)
    epsilon = divergence + ((order - 1) / order).ln() - (delta.ln() + order.ln()) / (order - 1)
    return max(Decimal(0), rounded_up(float(epsilon)))
