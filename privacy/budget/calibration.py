"""The other direction: how much noise makes a schedule cost at most a given epsilon."""

import math
from collections.abc import Callable
from decimal import Decimal
from statistics import NormalDist

from ..errors import PlanError
from ..plan import LARGEST_NOISE, SMALLEST_NOISE
from .accounting import epsilon_of, rounded_up
from .events import Events, SampledGaussian

# A calibrated multiplier is a multiple of this: a short public number that every party reads alike.
NOISE_STEP = 1e-4
_FEWEST, _MOST = round(SMALLEST_NOISE / NOISE_STEP), round(LARGEST_NOISE / NOISE_STEP)
_NORMAL = NormalDist()


def calibrated_noise(epsilon: float, delta: float, sampling_rate: float, steps: int, others: Events = ()) -> float:
    """The least noise multiplier with which `steps` sampled Gaussians, and `others`, cost at most `epsilon`.

    `epsilon` is by PLD at `delta`, add-or-remove-one, per PrivacyUnit. The answer is a multiple of `NOISE_STEP` of at
    least `SMALLEST_NOISE`. What it costs is charged rounded up, so that is what is held against the target: the answer
    keeps it, and one `NOISE_STEP` less does not (at deltas near 1e-12 the grid is rough, and a smaller one may again).

    Raises PlanError when `others` alone cost too much, or when no sensible noise reaches the target.

    >>> calibrated_noise(3.0, 1e-5, sampling_rate=0.2, steps=110)
    3.1087
    """
    target = Decimal(repr(epsilon))
    alone = epsilon_of(others, delta)
    if others and rounded_up(alone) >= target:
        raise PlanError(
            [f"evaluation alone costs epsilon {alone:.3f} at delta {delta}, of {epsilon} asked for"],
            "raise evaluation.noise-multiplier or evaluation.every, or ask for a larger epsilon",
        )

    def cost(multiple: int) -> float:
        return epsilon_of((SampledGaussian(_noise(multiple), sampling_rate, steps), *others), delta)

    near = _nearer(cost, epsilon, _guess(epsilon, delta, sampling_rate, steps, others))
    least = _least(lambda multiple: rounded_up(cost(multiple)) <= target, near)
    if least is None:
        raise PlanError(
            [f"no noise up to {LARGEST_NOISE:g} clip norms is shown to reach epsilon {epsilon} at delta {delta}"],
            "ask for a larger epsilon or delta, or for fewer steps",
        )
    return _noise(least)


def _noise(multiple: int) -> float:
    return round(multiple * NOISE_STEP, 4)


def _least(is_enough: Callable[[int], bool], near: int) -> int | None:
    """The least multiple that is enough, searched in growing steps from a guess and then by halves; None for none."""
    step, low, high = 1, near, near
    while not is_enough(high):
        if high == _MOST:
            return None
        low, high, step = high, min(_MOST, high + step), 2 * step
    while low == high or is_enough(low):
        if low == _FEWEST:
            return low
        high, low, step = low, max(_FEWEST, low - step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _nearer(cost: Callable[[int], float], epsilon: float, guess: int) -> int:
    """Where the cost is about `epsilon`: two secants in log space, as each look at the cost takes a while."""
    first, second = guess, guess + max(1, guess // 64)
    for _ in range(2):
        before, now = cost(first), cost(second)
        if not (0 < now < before < math.inf):
            break
        leap = math.log(epsilon / now) / math.log(now / before) * math.log(second / first)
        first, second = second, _within(second * math.exp(min(max(leap, -1), 1)))
    return second


def _within(multiple: float) -> int:
    return round(min(max(multiple, _FEWEST), _MOST))


def _guess(epsilon: float, delta: float, sampling_rate: float, steps: int, others: Events) -> int:
    """By the central limit theorem (Bu et al. 2020, Deep Learning with Gaussian Differential Privacy): only a start."""
    low, high = 1e-9, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _gaussian_delta(epsilon, middle) <= delta else (low, middle)
    left = max(low**2 - sum(event.count / event.noise_multiplier**2 for event in others), 0.01 * low**2)
    noise = 1 / math.sqrt(math.log1p(left / (sampling_rate**2 * steps)))
    return _within(noise / NOISE_STEP)


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta of a Gaussian mechanism with sensitivity `mu` and noise 1 (Balle and Wang 2018, theorem 8)."""
    outside = _NORMAL.cdf(-mu / 2 - epsilon / mu)
    return _NORMAL.cdf(mu / 2 - epsilon / mu) - (math.exp(min(epsilon, 700)) * outside if outside else 0.0)
