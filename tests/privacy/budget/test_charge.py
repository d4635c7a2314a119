from collections.abc import Callable

from privet.privacy.budget.charge import charged_events, evaluation_events, executed_events
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.plan import Plan

EVALUATION = ("evaluation.every=2", "evaluation.noise-multiplier=20.0")


def test_every_attempt_that_may_be_asked_is_charged(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("run.rounds=7", "run.spare-rounds=2", "training.local-steps=5", private=True)
    assert charged_events(plan, 4.0) == (SampledGaussian(4.0, 0.5, 45),)


def test_a_public_cap_on_participations_is_all_that_is_charged(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("run.rounds=7", "run.spare-rounds=2", "aggregation.participations=3", private=True)
    assert charged_events(plan, 4.0) == (SampledGaussian(4.0, 0.5, 6),)


def test_a_cap_above_all_rounds_charges_no_more_than_all_rounds(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("run.rounds=7", "aggregation.participations=100", private=True)
    assert plan.attempts_charged == 8


def test_evaluations_are_charged_without_amplification(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("run.rounds=7", *EVALUATION, private=True)
    assert charged_events(plan, 4.0) == (SampledGaussian(4.0, 0.5, 16), SampledGaussian(20.0, 1.0, 3))


def test_evaluation_of_the_same_noise_and_rate_is_counted_with_training(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(*EVALUATION, "evaluation.noise-multiplier=4.0", "privacy.sampling-rate=1.0", private=True)
    assert charged_events(plan, 4.0) == (SampledGaussian(4.0, 1.0, 5 * 2 + 2),)


def test_nothing_executed_is_nothing(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(*EVALUATION, private=True)
    assert executed_events(plan, 4.0, attempts=0, evaluations=0) == ()
    assert executed_events(plan, 4.0, attempts=0, evaluations=1) == (SampledGaussian(20.0, 1.0, 1),)
    assert executed_events(plan, 4.0, attempts=1, evaluations=0) == (SampledGaussian(4.0, 0.5, 2),)


def test_all_executed_is_what_was_charged(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(*EVALUATION, private=True)
    done = executed_events(plan, 4.0, plan.attempts_charged, plan.evaluations_charged)
    assert done == charged_events(plan, 4.0)


def test_a_plan_without_evaluation_has_none_to_charge(make_plan: Callable[..., Plan]) -> None:
    assert evaluation_events(make_plan(private=True), 5) == ()
