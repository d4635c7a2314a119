"""PRV's lower estimate against PLD, which it shares no code with: below it, and close."""

import pytest
from privet.client.prv import prv_lower_estimate
from privet.privacy.budget.accounting import epsilon_of
from privet.privacy.budget.events import Events, SampledGaussian


@pytest.mark.parametrize(
    "events",
    [
        (SampledGaussian(1.0, 0.01, 1000),),
        (SampledGaussian(3.1, 0.2, 110), SampledGaussian(20.0, 1.0, 4)),
        (SampledGaussian(5.0, 0.5, 2),),
        (SampledGaussian(1.0, 1.0, 3),),
    ],
)
def test_estimate_lies_below_pld_and_close(events: Events) -> None:
    estimate, charged = prv_lower_estimate(events, 1e-5), epsilon_of(events, 1e-5)
    assert estimate <= charged <= estimate + 0.03


def test_nothing_costs_nothing() -> None:
    assert prv_lower_estimate((), 1e-5) == 0.0
    assert prv_lower_estimate((SampledGaussian(50.0, 0.001, 10),), 1e-5) == 0.0
