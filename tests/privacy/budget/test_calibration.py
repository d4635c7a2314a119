import math
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from privet.privacy.budget.accounting import epsilon_of, epsilon_upper_bound, rounded_up
from privet.privacy.budget.calibration import NOISE_STEP, calibrated_noise
from privet.privacy.budget.events import Events, SampledGaussian
from privet.privacy.errors import PlanError
from privet.privacy.plan import LARGEST_NOISE, SMALLEST_NOISE
from scipy.stats import norm

DELTA = 1e-5


def charged(noise: float, rate: float, steps: int, others: Events = (), delta: float = DELTA) -> Decimal:
    return rounded_up(epsilon_of((SampledGaussian(noise, rate, steps), *others), delta))


@settings(max_examples=12, deadline=None)
@given(
    epsilon=st.decimals("0.1", "20", places=3).map(float),
    rate=st.floats(0.01, 1.0),
    steps=st.integers(10, 3000),
)
def test_calibrated_noise_keeps_the_target_and_one_step_less_does_not(epsilon: float, rate: float, steps: int) -> None:
    noise = calibrated_noise(epsilon, DELTA, rate, steps)
    assert charged(noise, rate, steps) <= Decimal(repr(epsilon))
    assume(noise > SMALLEST_NOISE)
    assert charged(round(noise - NOISE_STEP, 4), rate, steps) > Decimal(repr(epsilon))


@pytest.mark.parametrize("epsilon", [0.1, 1.15, 1.1, 2.0000001, 2.9999999])
def test_what_is_charged_is_never_above_the_target_as_it_is_spelled(epsilon: float) -> None:
    """A double may lie below its spelling, and a charge is rounded up: both once made a node refuse honest plans."""
    assert charged(calibrated_noise(epsilon, DELTA, 0.2, 110), 0.2, 110) <= Decimal(repr(epsilon))


def test_a_target_with_more_digits_than_a_charge_is_kept() -> None:
    """Much noise is finely graded: the double comes within 1e-8 of the target, the charge is 1e-6 coarse."""
    assert charged(calibrated_noise(0.0200001, DELTA, 1.0, 100), 1.0, 100) == Decimal("0.020000")


@pytest.mark.parametrize(("epsilon", "steps"), [(0.5, 1), (1.0, 40), (4.0, 400)])
def test_calibration_without_sampling_is_the_analytic_gaussian(epsilon: float, steps: int) -> None:
    """Balle and Wang 2018, theorem 8: the exact delta of what was calibrated is just below the one asked for."""

    def exact_delta(noise: float) -> float:
        mu = math.sqrt(steps) / noise
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))

    noise = calibrated_noise(epsilon, DELTA, 1.0, steps)
    assert exact_delta(noise) <= DELTA < exact_delta(0.998 * noise)


def test_the_result_is_a_short_number() -> None:
    assert calibrated_noise(3.0, DELTA, 0.2, 110) == 3.1087


def test_others_are_paid_from_the_same_epsilon() -> None:
    others = (SampledGaussian(20.0, 1.0, 4),)
    noise = calibrated_noise(3.0, DELTA, 0.2, 110, others)
    assert noise > calibrated_noise(3.0, DELTA, 0.2, 110)
    assert charged(noise, 0.2, 110, others) <= 3
    assert charged(round(noise - NOISE_STEP, 4), 0.2, 110, others) > 3


def test_a_target_between_pld_and_rdp_of_the_others_is_reached() -> None:
    """The looser accountant says that the evaluations alone cost too much; the one that charges knows better."""
    others = (SampledGaussian(8.0, 1.0, 20),)
    assert epsilon_of(others, DELTA) < 2.4 < epsilon_upper_bound(others, DELTA)
    assert charged(calibrated_noise(2.4, DELTA, 0.2, 100, others), 0.2, 100, others) <= Decimal("2.4")


def test_others_that_cost_too_much_alone_are_named() -> None:
    others = (SampledGaussian(1.0, 1.0, 20),)
    with pytest.raises(PlanError) as caught:
        calibrated_noise(3.0, DELTA, 0.2, 110, others)
    alone = epsilon_of(others, DELTA)
    assert caught.value.problems == (f"evaluation alone costs epsilon {alone:.3f} at delta 1e-05, of 3.0 asked for",)
    assert "evaluation.noise-multiplier" in caught.value.remedy


@pytest.mark.timeout(60)
def test_a_target_that_no_noise_reaches_is_refused_and_not_searched_for_ever() -> None:
    with pytest.raises(PlanError) as caught:
        calibrated_noise(1e-7, 1e-12, 0.2, 110)
    (problem,) = caught.value.problems
    assert problem == f"no noise up to {LARGEST_NOISE:g} clip norms is shown to reach epsilon 1e-07 at delta 1e-12"


@pytest.mark.slow
def test_where_hardly_any_noise_is_enough_the_smallest_is_given() -> None:
    assert calibrated_noise(90.0, 0.5, 1e-9, 1) == SMALLEST_NOISE
