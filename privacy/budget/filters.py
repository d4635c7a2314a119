"""Filters: when may an account spend more? Two stopping rules that stay sound when later plans depend on earlier
results.

PLD and PRV are not proven safe as stopping rules under full adaptivity: where a plan's parameters were chosen after
seeing what earlier plans released, their composition is not covered. So an account has one of these, chosen when it
is opened:

- additive: each admitted plan's own (epsilon, delta), from PLD, added up (basic composition of adaptively chosen
  mechanisms as a filter: Rogers et al. 2016, "Privacy Odometers and Filters", theorem 3.6).
- renyi: the Renyi divergences of the plans at one fixed order alpha, added up (Feldman and Zrnic 2021, "Individual
  Privacy
  Accounting via a Renyi Filter", theorem 4.3; Lecuyer 2021), and turned into (epsilon, delta) by Canonne, Kamath and
  Steinke 2020, proposition 12: epsilon = rho + ln((alpha-1)/alpha) - (ln delta + ln alpha)/(alpha-1).

Runs may interleave: concurrent composition costs no more (Lyu 2022; Vadhan and Zhang 2023; Haney et al. 2023).
Limits are decimals; what is spent is rounded up, what is allowed is rounded down.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

from .accounting import renyi_divergences
from .events import Events

FilterName = Literal["additive", "renyi"]

# Integer orders that an account may be opened at: with Poisson sampling fractional ones can be infinite.
ALPHAS = tuple(range(2, 129))
_PLACES = Decimal("0.000000001")


def renyi_cost(events: Events, alpha: int) -> Decimal:
    """The Renyi divergence of order `alpha` of all events together, rounded up; infinite where it is not finite."""
    if not events:
        return Decimal(0)
    return _rounded_up(renyi_divergences(events, (alpha,))[0])


def renyi_limit(epsilon: Decimal, delta: Decimal, alpha: int) -> Decimal:
    """What the divergences of order `alpha` may add up to, so that (epsilon, delta) holds; rounded down.

    >>> renyi_limit(Decimal("10"), Decimal("1e-4"), 8)
    Decimal('9.114831559')
    """
    limit = float(epsilon) - math.log((alpha - 1) / alpha) + (math.log(delta) + math.log(alpha)) / (alpha - 1)
    return Decimal(limit).quantize(_PLACES, rounding=ROUND_FLOOR)


def renyi_epsilon(spent: Decimal, delta: Decimal, alpha: int) -> Decimal:
    """The epsilon at `delta` that divergences of order `alpha` adding up to `spent` give; rounded up, never below 0."""
    if spent == 0:
        return Decimal(0)
    if not spent.is_finite():
        return Decimal("Infinity")
    epsilon = float(spent) + math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
    return max(Decimal(0), _rounded_up(epsilon))


def best_alpha(events: Events, epsilon: Decimal, delta: Decimal) -> int:
    """The order at which an account of (epsilon, delta) admits most plans like `events`; the smallest of equals."""
    costs = renyi_divergences(events, ALPHAS)

    def plans_admitted(place: int) -> float:
        return float(renyi_limit(epsilon, delta, ALPHAS[place])) / max(costs[place], 1e-12)

    return ALPHAS[max(range(len(ALPHAS)), key=lambda place: (plans_admitted(place), -place))]


def _rounded_up(value: float) -> Decimal:
    if not math.isfinite(value):
        return Decimal("Infinity")
    return Decimal(value).quantize(_PLACES, rounding=ROUND_CEILING)
