import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.budget.events import SampledGaussian, merged

EVENTS = st.lists(
    st.builds(
        SampledGaussian,
        noise_multiplier=st.sampled_from([0.5, 1.0, 2.5]),
        sampling_rate=st.sampled_from([0.01, 0.3, 1.0]),
        count=st.integers(0, 50),
    ),
    max_size=8,
)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_noise_must_be_positive_and_finite(noise: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier must be positive and finite"):
        SampledGaussian(noise, 0.1, 1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan])
def test_sampling_rate_must_be_a_chance(rate: float) -> None:
    with pytest.raises(ValueError, match=r"sampling_rate must lie in \(0, 1\]"):
        SampledGaussian(1.0, rate, 1)


def test_count_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        SampledGaussian(1.0, 0.1, -1)


def test_recorded_numbers_read_back_to_the_same_double() -> None:
    event = SampledGaussian(0.1 + 0.2, 1 / 3, 10**12)
    told = event.as_json()
    assert told["kind"] == "sampled-gaussian"
    assert (float(told["noise_multiplier"]), float(told["sampling_rate"])) == (0.1 + 0.2, 1 / 3)
    assert int(told["count"]) == 10**12
    assert all(isinstance(value, str) for value in told.values())


@given(EVENTS)
def test_merging_keeps_what_was_done(events: list[SampledGaussian]) -> None:
    together = merged(events)
    for noise, rate in {(event.noise_multiplier, event.sampling_rate) for event in events}:
        done = sum(e.count for e in events if (e.noise_multiplier, e.sampling_rate) == (noise, rate))
        kept = [e.count for e in together if (e.noise_multiplier, e.sampling_rate) == (noise, rate)]
        assert kept == ([done] if done else [])


@given(EVENTS, st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_order(events: list[SampledGaussian], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merged(shuffled) == merged(events) == merged(merged(events))
