"""Epsilons are held against closed forms, other accountants and published tables: never against privet itself."""

import math
from collections.abc import Callable
from decimal import Decimal

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from privet.privacy.budget.accounting import (
    PLD_GRID,
    checking_bound,
    epsilon_of,
    epsilon_upper_bound,
    rounded_up,
    shown,
)
from privet.privacy.budget.events import SampledGaussian, merged
from scipy.optimize import brentq
from scipy.stats import norm

DELTA = 1e-5
GRID_ERROR = 0.004  # what the coarse grid may add: see the comment at PLD_GRID

# docs: FACTS, section Accounting. q, sigma, steps, epsilon by RDP, PRV and PLD (on a grid of 1e-4) at delta 1e-5.
MEASURED = [
    (0.01, 1.0, 1_000, 2.101, 1.838, 1.828),
    (0.01, 1.0, 10_000, 6.713, 6.198, 6.188),
    (0.01, 0.6, 1_000, 8.67, 7.444, 7.434),
    (0.05, 2.0, 1_000, 4.024, 3.710, 3.700),
    (1.0, 10.0, 100, 4.729, 4.387, 4.377),
    (0.1, 1.0, 100, 7.90, 7.057, 7.047),
]


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact epsilon of a Gaussian mechanism with sensitivity over noise `mu`."""

    def excess(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 200.0, xtol=1e-12))


def opacus_epsilon(accountant: RDPAccountant | PRVAccountant, event: SampledGaussian, delta: float) -> float:
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.count)]
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("rate", "noise", "steps", "rdp", "prv", "pld"), MEASURED)
def test_pld_agrees_with_the_measured_table(
    rate: float, noise: float, steps: int, rdp: float, prv: float, pld: float
) -> None:
    epsilon = epsilon_of((SampledGaussian(noise, rate, steps),), DELTA)
    assert pld - 0.0005 <= epsilon <= pld + 0.0005 + GRID_ERROR
    assert epsilon < prv < rdp


@pytest.mark.parametrize(("rate", "noise", "steps", "rdp", "prv", "pld"), MEASURED)
def test_rdp_agrees_with_the_measured_table(
    rate: float, noise: float, steps: int, rdp: float, prv: float, pld: float
) -> None:
    # The table was made with orders between the integers too, so that it lies a little below.
    assert rdp - 0.006 <= epsilon_upper_bound((SampledGaussian(noise, rate, steps),), DELTA) <= 1.05 * rdp


# What others published by RDP with the older conversion, which is looser than both accountants here.
PUBLISHED = [
    pytest.param(0.01, 4.0, 10_000, 1.26, id="Abadi et al. 2016, section 3.2 (9.34 by strong composition)"),
    pytest.param(250 / 60_000, 1.3, 3_600, 1.19, id="TensorFlow Privacy, MNIST tutorial, 15 epochs"),
    pytest.param(256 / 60_000, 1.1, 14_062, 3.01, id="TensorFlow Privacy, MNIST tutorial, 60 epochs"),
    pytest.param(256 / 60_000, 0.7, 10_546, 7.10, id="TensorFlow Privacy, MNIST tutorial, 45 epochs"),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "published"), PUBLISHED)
def test_published_bounds_hold_and_the_central_limit_lies_below(
    rate: float, noise: float, steps: int, published: float
) -> None:
    """Bu et al. 2020: by the central limit theorem mu is q * sqrt(T * (exp(1 / sigma^2) - 1)), a little too small."""
    event = (SampledGaussian(noise, rate, steps),)
    limit = gaussian_epsilon(rate * math.sqrt(steps * math.expm1(noise**-2)), DELTA)
    assert limit < epsilon_of(event, DELTA) < epsilon_upper_bound(event, DELTA) < published
    assert epsilon_upper_bound(event, DELTA) > 0.75 * published


@pytest.mark.parametrize(("noise", "count"), [(0.5, 1), (1.0, 1), (4.0, 1), (10.0, 100), (20.0, 5), (44.0, 1000)])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_unsampled_epsilon_is_the_exact_one_of_the_gaussian_mechanism(noise: float, count: int, delta: float) -> None:
    exact = gaussian_epsilon(math.sqrt(count) / noise, delta)
    epsilon = epsilon_of((SampledGaussian(noise, 1.0, count),), delta)
    assert exact - 1e-9 <= epsilon <= exact + 0.002
    assert epsilon_upper_bound((SampledGaussian(noise, 1.0, count),), delta) >= exact


@settings(max_examples=30, deadline=None)
@given(noise=st.floats(0.5, 100), count=st.integers(1, 1000), delta=st.floats(1e-9, 0.1))
def test_unsampled_epsilon_is_never_below_the_exact_one(noise: float, count: int, delta: float) -> None:
    assume(math.sqrt(count) / noise < 8)
    assert epsilon_of((SampledGaussian(noise, 1.0, count),), delta) >= gaussian_epsilon(
        math.sqrt(count) / noise, delta
    ) * (1 - 1e-9)


def opacus_may_warn(test: Callable[..., None]) -> Callable[..., None]:
    """Its PRV divides by zero at sampling rate 1, with the right result, and its RDP may end at its largest order."""
    at_rate_one = pytest.mark.filterwarnings("ignore:divide by zero encountered in log:RuntimeWarning")
    at_largest_order = pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning")
    return at_rate_one(at_largest_order(test))


@opacus_may_warn
@pytest.mark.parametrize(("rate", "noise", "steps", "rdp", "prv", "pld"), MEASURED)
def test_opacus_agrees(rate: float, noise: float, steps: int, rdp: float, prv: float, pld: float) -> None:
    """Opacus' PRV is another program (numerical composition by FFT); its upper end stands 0.01 above the truth."""
    event = SampledGaussian(noise, rate, steps)
    by_prv = opacus_epsilon(PRVAccountant(), event, DELTA)
    assert by_prv - 0.02 <= epsilon_of((event,), DELTA) <= by_prv
    assert epsilon_of((event,), DELTA) <= opacus_epsilon(RDPAccountant(), event, DELTA)


@opacus_may_warn
@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.95, 5.0, 50), (0.5, 10.0, 200), (0.002, 0.7, 5_000)])
def test_opacus_agrees_between_the_usual_rates(rate: float, noise: float, steps: int) -> None:
    event = SampledGaussian(noise, rate, steps)
    by_prv = opacus_epsilon(PRVAccountant(), event, DELTA)
    assert by_prv - 0.02 <= epsilon_of((event,), DELTA) <= by_prv


@opacus_may_warn
def test_opacus_agrees_on_a_mixture_of_training_and_evaluation() -> None:
    events = (SampledGaussian(2.0, 0.05, 400), SampledGaussian(20.0, 1.0, 4))
    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    assert accountant.get_epsilon(DELTA) - 0.02 <= epsilon_of(events, DELTA) <= accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    "events",
    [
        (SampledGaussian(0.7, 0.2, 15),),
        (SampledGaussian(0.7, 0.2, 300),),  # whose step is known by now
        (SampledGaussian(3.0, 1.0, 7),),
        (SampledGaussian(1.1, 0.05, 400), SampledGaussian(20.0, 1.0, 4)),
    ],
)
def test_pld_is_to_the_bit_what_dp_accountings_own_accountant_says(events: tuple[SampledGaussian, ...]) -> None:
    """Each party computes a charge anew: so a step that is kept between epsilons must not change any."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=PLD_GRID)
    for event in merged(events):
        gaussian = GaussianDpEvent(event.noise_multiplier)
        sampled = event.sampling_rate < 1
        accountant.compose(PoissonSampledDpEvent(event.sampling_rate, gaussian) if sampled else gaussian, event.count)
    assert epsilon_of(events, DELTA) == accountant.get_epsilon(DELTA)


SCHEDULES = st.builds(
    SampledGaussian,
    noise_multiplier=st.floats(0.8, 40),
    sampling_rate=st.floats(0.005, 1.0),
    count=st.integers(1, 2000),
)


def usual(event: SampledGaussian) -> bool:
    return epsilon_upper_bound((event,), DELTA) < 30


@settings(max_examples=25, deadline=None)
@given(SCHEDULES, st.floats(-9, -2))
def test_pld_is_at_most_rdp_where_steps_fill_the_grid(event: SampledGaussian, exponent: float) -> None:
    assume(usual(event) and event.sampling_rate >= 2 * PLD_GRID * event.noise_multiplier)
    assert epsilon_of((event,), 10**exponent) <= epsilon_upper_bound((event,), 10**exponent)


def test_pld_may_exceed_rdp_for_a_million_tiny_steps() -> None:
    """Pins the limit that the module's docstring states: pessimistic there, never optimistic."""
    event = (SampledGaussian(1000.0, 0.1, 1_000_000),)
    assert 1.5 * epsilon_upper_bound(event, DELTA) < epsilon_of(event, DELTA) < 4 * epsilon_upper_bound(event, DELTA)


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, st.integers(1, 500))
def test_more_steps_cost_more(event: SampledGaussian, more: int) -> None:
    assume(usual(event))
    longer = SampledGaussian(event.noise_multiplier, event.sampling_rate, event.count + more)
    assert epsilon_of((longer,), DELTA) >= epsilon_of((event,), DELTA) - 1e-6


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, st.floats(1.01, 3))
def test_a_larger_sampling_rate_costs_more(event: SampledGaussian, times: float) -> None:
    assume(usual(event))
    larger = SampledGaussian(event.noise_multiplier, min(1.0, times * event.sampling_rate), event.count)
    assert epsilon_of((larger,), DELTA) >= epsilon_of((event,), DELTA) - 1e-3


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, st.floats(1.01, 3))
def test_less_noise_costs_more(event: SampledGaussian, times: float) -> None:
    quieter = SampledGaussian(event.noise_multiplier / times, event.sampling_rate, event.count)
    assume(usual(quieter))
    assert epsilon_of((quieter,), DELTA) >= epsilon_of((event,), DELTA) - 1e-6


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, st.floats(-8, -3), st.floats(0.1, 2))
def test_a_larger_delta_costs_less(event: SampledGaussian, exponent: float, more: float) -> None:
    assume(usual(event))
    assert epsilon_of((event,), 10 ** (exponent + more)) <= epsilon_of((event,), 10**exponent)


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, SCHEDULES, st.data())
def test_merging_does_not_change_epsilon(one: SampledGaussian, other: SampledGaussian, data: st.DataObject) -> None:
    assume(epsilon_upper_bound((one, other), DELTA) < 30)
    first = data.draw(st.integers(0, one.count))
    parts = [
        SampledGaussian(one.noise_multiplier, one.sampling_rate, first),
        other,
        SampledGaussian(one.noise_multiplier, one.sampling_rate, one.count - first),
    ]
    assert merged(parts) == merged((one, other))
    assert epsilon_of(tuple(parts), DELTA) == epsilon_of((other, one), DELTA)


@settings(max_examples=15, deadline=None)
@given(SCHEDULES, SCHEDULES)
def test_a_composition_costs_at_least_each_part_and_at_most_their_sum(
    one: SampledGaussian, other: SampledGaussian
) -> None:
    assume(epsilon_upper_bound((one, other), DELTA) < 30)
    together = epsilon_of((one, other), DELTA)
    assert together >= max(epsilon_of((one,), DELTA), epsilon_of((other,), DELTA)) - 1e-6
    # Basic composition: the deltas add up too.
    assert together <= epsilon_of((one,), DELTA / 2) + epsilon_of((other,), DELTA / 2) + 1e-6


def test_nothing_done_costs_nothing() -> None:
    assert epsilon_of((), DELTA) == 0
    assert epsilon_of((SampledGaussian(1.0, 0.5, 0),), DELTA) == 0
    assert epsilon_upper_bound((), DELTA) == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_outside_the_unit_interval_is_a_mistake(delta: float) -> None:
    with pytest.raises(ValueError, match="delta must lie in"):
        epsilon_of((SampledGaussian(1.0, 0.5, 1),), delta)
    with pytest.raises(ValueError, match="delta must lie in"):
        epsilon_upper_bound((SampledGaussian(1.0, 0.5, 1),), delta)


@pytest.mark.parametrize(
    "event",
    [
        SampledGaussian(1e-6, 1.0, 1),
        SampledGaussian(1e-6, 1e-9, 1),
        SampledGaussian(0.05, 1.0, 100),
        SampledGaussian(1.0, 1.0, 10**10),
        SampledGaussian(0.05, 0.01, 10**9),
    ],
)
@pytest.mark.timeout(20)
def test_exhausting_the_accountant(event: SampledGaussian) -> None:
    """Attack: a submission whose epsilon is in the thousands, whose grid would keep a node busy for hours."""
    assert epsilon_of((event,), DELTA) == math.inf


def test_infinity_is_only_told_where_privacy_is_meaningless() -> None:
    """The largest finite ones: their order-2 bound lies just below 1000, the true epsilon in the hundreds."""
    assert 500 < epsilon_of((SampledGaussian(1.0, 1.0, 980),), DELTA) < 980 + math.log(1e5)
    assert epsilon_of((SampledGaussian(1.0, 1.0, 1000),), DELTA) == math.inf


@given(st.floats(0, 1e9))
def test_rounding_up_is_never_below_and_at_most_a_millionth_above(epsilon: float) -> None:
    decimal = rounded_up(epsilon)
    assert Decimal(epsilon) <= decimal <= Decimal(epsilon) + Decimal("0.000001")
    assert -decimal.as_tuple().exponent == 6  # type: ignore[operator]


@given(st.floats(0, 1e9))
def test_what_is_shown_is_never_less_than_what_holds(epsilon: float) -> None:
    assert Decimal(epsilon) <= Decimal(shown(epsilon)) <= Decimal(epsilon) + Decimal("0.01")


@pytest.mark.parametrize("epsilon", [math.inf, math.nan])
def test_an_epsilon_that_is_no_number_counts_as_infinite(epsilon: float) -> None:
    assert rounded_up(epsilon) == Decimal("Infinity")
    assert shown(epsilon) == "infinite"


def test_the_checking_bound_is_given_only_where_it_is_the_looser_one() -> None:
    """Where a step's loss is lost in a cell of the grid PLD is the larger of the two, and nothing is wrong."""
    usual, tiny = (SampledGaussian(1.0, 0.1, 100),), (SampledGaussian(1000.0, 0.1, 10_000_000),)
    bound = checking_bound(usual, 1e-5)
    assert bound is not None
    assert epsilon_of(usual, 1e-5) <= bound
    assert checking_bound(tiny, 1e-5) is None
    assert epsilon_of(tiny, 1e-5) > epsilon_upper_bound(tiny, 1e-5)
    assert checking_bound(usual, 1e-10) is None
