"""The other direction: how much noise makes a schedule cost at most a given epsilon."""

import math
from collections.abc import Callable

from scipy import optimize

from ..errors import PlanError
from .accounting import epsilon_of, epsilon_upper_bound
from .events import Events, SampledGaussian

# A calibrated multiplier is a multiple of this, rounded up: a short public number that every party reads alike.
NOISE_STEP = 1e-4
# Outside these a plan is a mistake: below, epsilon is in the hundreds; above, the model is pure noise.
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e6


def calibrated_noise(epsilon: float, delta: float, sampling_rate: float, steps: int, others: Events = ()) -> float:
    """The smallest noise multiplier with which `steps` sampled Gaussians, and `others`, cost at most `epsilon`.

    `epsilon` is by PLD at `delta`, add-or-remove-one, per PrivacyUnit. The answer is a multiple of `NOISE_STEP`, and
    the epsilon of what it gives is verified to be at most the target before it is returned.

    Raises PlanError when `others` alone cost too much, or when no sensible noise reaches the target.

    >>> calibrated_noise(3.0, 1e-5, sampling_rate=0.2, steps=110)
    3.1087
    """
    if others and epsilon_of(others, delta) >= epsilon:
        alone = epsilon_of(others, delta)
        raise PlanError(
            [f"evaluation alone costs epsilon {alone:.3f} at delta {delta}, of {epsilon} asked for"],
            "raise evaluation.noise-multiplier or evaluation.every, or ask for a larger epsilon",
        )

    def cost(noise: float, accountant: Callable[[Events, float], float] = epsilon_of) -> float:
        return accountant((SampledGaussian(noise, sampling_rate, steps), *others), delta)

    if cost(LARGEST_NOISE, epsilon_upper_bound) > epsilon:
        raise PlanError(
            [f"no noise below {LARGEST_NOISE:g} clip norms reaches epsilon {epsilon} at delta {delta}"],
            "ask for a larger epsilon or delta",
        )
    # RDP is cheap and close: PLD needs a little less noise, or (for tiny epsilons, by its grid) a little more.
    guess = _root(lambda noise: cost(noise, epsilon_upper_bound) - epsilon, SMALLEST_NOISE, LARGEST_NOISE, 1e-2)
    low, high = 0.8 * guess, guess
    while low > SMALLEST_NOISE and cost(low) <= epsilon:
        low, high = 0.8 * low, low
    while cost(high) > epsilon:
        low, high = high, 1.1 * high
    noise = _on_grid(_root(lambda noise: cost(noise) - epsilon, low, high, 1e-5) if cost(low) > epsilon else low)
    while cost(noise) > epsilon:
        noise = _on_grid(noise + NOISE_STEP)
    return noise


def _on_grid(noise: float) -> float:
    """The least multiple of NOISE_STEP that is not below `noise`, but for rounding in the last place."""
    return round(math.ceil(noise / NOISE_STEP - 1e-6) * NOISE_STEP, 4)


def _root(gap: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a falling function crosses zero, searched in log space (Brent's method)."""
    if gap(low) <= 0:
        return low
    root = optimize.brentq(lambda x: gap(math.exp(x)), math.log(low), math.log(high), xtol=1e-12, rtol=tolerance)
    return float(math.exp(root))
