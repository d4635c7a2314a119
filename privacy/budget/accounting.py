"""Events -> epsilon. Two accountants that share nothing but dp-accounting's numerics.

- PLD (Koskela et al. 2020; Doroshenko et al. 2022) gives the number that is charged. Its discretisation is pessimistic:
  the number is an upper bound whatever the grid. The grid is pinned, so that every party computes the same one.
- RDP (Mironov 2017; Zhu and Wang 2019) gives another upper bound, kept as a check. It is the looser one where a step's
  privacy loss fills cells of the grid (sampling rate at least 2 * PLD_GRID * noise multiplier) and delta is at least
  1e-9: there a PLD above it means a defect. Elsewhere PLD may be the larger one, and holds all the same: it rounds each
  step's loss up to cells (3.85 against 1.31 after 1e7 steps at rate 0.1 and noise 1000), and it cuts tails.

Assumptions of every number here: Poisson sampling with exactly the stated rate; noise fresh and independent at every
step; the schedule fixed before the first step; relation add-or-remove-one; arithmetic as if in real numbers.
"""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from .events import Events, SampledGaussian, merged

if TYPE_CHECKING:  # it brings scipy, a second of import: only where something is computed
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.rdp import RdpAccountant

# Width of a cell of the privacy loss grid. Coarser than dp-accounting's 1e-4 by design: at most 0.004 more epsilon,
# 8 times faster (over the pairs in tests/privacy/budget/test_accounting.py). Part of every recorded charge.
PLD_GRID = 1e-3
# Integer orders from 2: with Poisson sampling the fractional ones can be infinite (q .1, sigma 1, order 1.5).
RDP_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
_SMALLEST_CHECKED_DELTA = 1e-9
_LARGEST_BOUND = 1000.0  # of epsilon; above it nothing is computed but infinity
_LARGEST_EXPONENT = 700.0  # of e in a double, with room to spare
EPSILON_DIGITS = Decimal("0.000001")

ACCOUNTANT = "PLD, dp-accounting, grid 1e-3"


def epsilon_of(events: Events, delta: float) -> float:
    """The epsilon of all events together at `delta`, by PLD: an upper bound, per PrivacyUnit.

    `delta` in (0, 1). No events cost 0. Add-or-remove-one. Infinite where the Renyi divergence of order 2 bounds it
    by no less than 1000: such a number protects nobody, and its grid could take hours.

    >>> round(epsilon_of((SampledGaussian(1.0, 0.01, 1000),), 1e-5), 2)
    1.83
    """
    _check_delta(delta)
    events = merged(events)
    if sum(map(_renyi_of_order_2, events)) - math.log(delta) > _LARGEST_BOUND:
        return math.inf
    return _pld_epsilon(events, delta)


def epsilon_upper_bound(events: Events, delta: float) -> float:
    """The same by RDP with integer orders: another upper bound, computed differently, for checking.

    >>> round(epsilon_upper_bound((SampledGaussian(1.0, 0.01, 1000),), 1e-5), 2)
    2.11
    """
    _check_delta(delta)
    events = merged(events)
    return float(_rdp(events, RDP_ORDERS).get_epsilon(delta)) if events else 0.0


def checking_bound(events: Events, delta: float) -> float | None:
    """`epsilon_upper_bound` where it is the looser of the two, so that a PLD above it means a defect; else None.

    That is where each step's privacy loss fills cells of the grid, and delta is far from the tails that PLD cuts.
    """
    fills_cells = all(event.sampling_rate >= 2 * PLD_GRID * event.noise_multiplier for event in events)
    return epsilon_upper_bound(events, delta) if fills_cells and delta >= _SMALLEST_CHECKED_DELTA else None


def renyi_divergences(events: Events, orders: Sequence[int]) -> list[float]:
    """The Renyi divergence of all events together at each order, add-or-remove-one; infinite where it is not finite."""
    return [float(divergence) for divergence in _rdp(merged(events), orders).rdp]


def _rdp(events: Events, orders: Sequence[int]) -> "RdpAccountant":
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=list(orders), neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        accountant.compose(_dp_event(event), event.count)
    return accountant


def rounded_up(epsilon: float) -> Decimal:
    """An epsilon as a decimal of six places, never below the double that it came from.

    >>> rounded_up(2.9999991)
    Decimal('3.000000')
    """
    if not math.isfinite(epsilon):
        return Decimal("Infinity")
    return Decimal(epsilon).quantize(EPSILON_DIGITS, rounding=ROUND_CEILING)


def shown(epsilon: float | Decimal) -> str:
    """Two places, rounded up: what is printed is never less than what holds.

    >>> shown(2.841)
    '2.85'
    """
    return (
        f"{Decimal(epsilon).quantize(Decimal('0.01'), rounding=ROUND_CEILING)}"
        if math.isfinite(epsilon)
        else "infinite"
    )


@lru_cache(maxsize=1024)
def _pld_epsilon(events: Events, delta: float) -> float:
    if not events:
        return 0.0
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = pld.identity(value_discretization_interval=PLD_GRID)
    for event in events:
        total = total.compose(_composed(event))
    return float(total.get_epsilon_for_delta(delta))


def _composed(event: SampledGaussian) -> "PrivacyLossDistribution":
    """The privacy loss of all steps of an event, to the bit as dp-accounting's PLDAccountant has it."""
    if event.sampling_rate == 1:  # then they are one Gaussian
        return _step(event.noise_multiplier / math.sqrt(event.count), 1.0)
    return _step(event.noise_multiplier, event.sampling_rate).self_compose(event.count)


@lru_cache(maxsize=8)  # two thirds of an epsilon's time; a run's epsilons have their step in common
def _step(noise_multiplier: float, sampling_rate: float) -> "PrivacyLossDistribution":
    """The privacy loss of one Gaussian, of a sample of the records if the rate is below 1."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=PLD_GRID,
        sampling_prob=sampling_rate,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _renyi_of_order_2(event: SampledGaussian) -> float:
    """Mironov et al. 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", section 3.3."""
    exponent = event.noise_multiplier**-2
    if exponent > _LARGEST_EXPONENT:
        return math.inf
    return event.count * math.log1p(event.sampling_rate**2 * math.expm1(exponent))


def _dp_event(event: SampledGaussian) -> "DpEvent":
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    gaussian = GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate == 1:
        return gaussian
    return PoissonSampledDpEvent(event.sampling_rate, gaussian)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
