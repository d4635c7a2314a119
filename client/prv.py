"""Opacus' PRV accountant as a third opinion on a charge: a lower estimate that no correct charge lies below.

Source: Gopi, Lee and Wutschitz 2021, "Numerical Composition of Differential Privacy", as Opacus carries it. It shares
no code with dp-accounting. It looks at one of the two directions of add-or-remove-one, so that it can only be too low.
"""

import warnings

from opacus.accountants import PRVAccountant

from ..privacy.budget.events import Events, merged

_EPSILON_ERROR = 0.01
_DELTA_ERROR = 1e-3  # of delta


def prv_lower_estimate(events: Events, delta: float) -> float:
    """An epsilon at `delta` that the events cost at least, up to the error in delta of a thousandth; at least 0.

    Raises ValueError where PRV cannot be computed.

    >>> from privet.privacy.budget.events import SampledGaussian
    >>> round(prv_lower_estimate((SampledGaussian(1.0, 0.01, 1000),), 1e-5), 2)
    1.82
    """
    events = merged(events)
    if not events:
        return 0.0  # Opacus fails on an empty history
    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    error = _DELTA_ERROR * delta
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overflow far out in the tails, where it is cut off
            composed = accountant._get_dprv(eps_error=_EPSILON_ERROR, delta_error=error)
            lower, _, _ = composed.compute_epsilon(delta, error, _EPSILON_ERROR)
    except (ArithmeticError, RuntimeError, IndexError, MemoryError) as problem:
        raise ValueError(f"PRV: {problem}") from None
    return max(0.0, float(lower))
