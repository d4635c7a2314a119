import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from privet.privacy.budget.accounting import epsilon_of, rounded_up
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.errors import PlanError
from privet.privacy.plan import Plan
from privet.privacy.plan_cost import cost_of
from privet.privacy.submission import claim_of

MakePlan = Callable[..., Plan]
EVALUATION = ("evaluation.every=3", "evaluation.noise-multiplier=20.0")


def cost(*events: SampledGaussian) -> Decimal:
    return rounded_up(epsilon_of(events, 1e-5))


def test_a_plan_without_a_claim_has_no_cost(make_plan: MakePlan) -> None:
    assert cost_of(make_plan()) is None


def test_the_cost_is_that_of_everything_that_may_be_asked(make_plan: MakePlan) -> None:
    told = cost_of(make_plan("run.rounds=8", *EVALUATION, private=True))
    assert told is not None
    assert told.epsilon == cost(SampledGaussian(4.0, 0.5, 18), SampledGaussian(20.0, 1.0, 2))
    assert told.epsilon_evaluation_alone == cost(SampledGaussian(20.0, 1.0, 2))
    assert told.epsilon_claimed == float(told.epsilon)
    assert told.epsilon_rdp_bound > told.epsilon
    assert (told.steps_charged, told.evaluations_charged) == (18, 2)
    assert (told.unit, told.relation, told.delta) == ("record", "add-or-remove-one", 1e-5)


def test_the_table_tells_what_was_executed_by_then(make_plan: MakePlan) -> None:
    told = cost_of(make_plan("run.rounds=8", *EVALUATION, private=True))
    assert told is not None
    assert told.by_round == {
        2: cost(SampledGaussian(4.0, 0.5, 4)),
        4: cost(SampledGaussian(4.0, 0.5, 8), SampledGaussian(20.0, 1.0, 1)),
        6: cost(SampledGaussian(4.0, 0.5, 12), SampledGaussian(20.0, 1.0, 2)),
        8: cost(SampledGaussian(4.0, 0.5, 16), SampledGaussian(20.0, 1.0, 2)),
    }
    assert max(told.by_round.values()) < told.epsilon  # spare rounds are charged and not yet used


def test_the_table_of_a_capped_plan_stops_growing_at_the_cap(make_plan: MakePlan) -> None:
    told = cost_of(make_plan("run.rounds=8", "aggregation.participations=4", private=True))
    assert told is not None
    assert told.by_round[4] == told.by_round[8] == told.epsilon
    assert told.by_round[2] < told.epsilon


def test_a_plan_of_one_round_has_a_table_of_one(make_plan: MakePlan) -> None:
    told = cost_of(make_plan("run.rounds=1", private=True))
    assert told is not None
    assert list(told.by_round) == [1]


def test_the_cost_is_at_most_the_epsilon_asked_for_and_the_claim_is_that_epsilon(make_plan: MakePlan) -> None:
    plan = make_plan("privacy.noise-multiplier=", "privacy.epsilon=1.15", private=True)
    told, claim = cost_of(plan), claim_of(plan)
    assert told is not None
    assert claim is not None
    assert told.epsilon <= Decimal("1.15")
    assert (told.epsilon_claimed, told.noise_multiplier) == (1.15, claim.noise_multiplier)


def test_a_plan_that_no_noise_can_keep_has_no_cost_but_an_error(make_plan: MakePlan) -> None:
    plan = make_plan(
        "privacy.noise-multiplier=", "privacy.epsilon=0.5", "evaluation.noise-multiplier=2.0", private=True
    )
    with pytest.raises(PlanError, match="evaluation alone costs epsilon"):
        cost_of(plan)


def test_json_holds_numbers_and_nothing_that_json_lacks(make_plan: MakePlan) -> None:
    told = cost_of(make_plan(*EVALUATION, private=True))
    assert told is not None
    read = json.loads(json.dumps(told.as_json(), allow_nan=False))
    assert read["epsilon"] == float(told.epsilon)
    assert read["by_round"]["4"] == float(told.by_round[4])
