"""Plans that hide whole nodes: what they may be, what they cost, and what they must not be."""

import json
import math
from decimal import Decimal

import pytest
import rfc8785
from privet.privacy.budget.accounting import epsilon_of, renyi_divergences
from privet.privacy.budget.adaptive import next_clip_norm, sum_noise_multiplier
from privet.privacy.budget.charge import charged_events, executed_epsilon
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.errors import PlanError, UsageError
from privet.privacy.submission import Submission

CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=1.0",
    "privacy.delta=1e-5",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "aggregation.fraction=0.01",
)
ADAPTIVE = (*CENTRAL, "privacy.target-quantile=0.5", "privacy.count-noise-stddev=20.0")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (("run.spare-rounds=1",), "run.spare-rounds: with unit 'node' no round is repeated"),
        (("aggregation.participations=2",), "aggregation.participations: with unit 'node' each node takes part by"),
        (("aggregation.deadline=5.0",), "aggregation.deadline: unit 'node' does not read it"),
        (("aggregation.update-precision=bfloat16",), "aggregation.update-precision: 'bfloat16' would round parameters"),
        (("privacy.clip-norm=1e-320",), "privacy.clip-norm: 9.99989e-321; with unit 'node' it lies between 9.09e-13"),
        (("privacy.clip-norm=1e12",), "privacy.clip-norm: 1e+12; with unit 'node' it lies between"),
        (("evaluation.every=1",), "evaluation: with unit 'node' the nodes' own metrics are not accounted for"),
        (("aggregation.strategy=fedmedian",), "aggregation.strategy: 'fedmedian' needs more than the noised sum"),
        (("aggregation.strategy=krum", "aggregation.malicious-nodes=1"), "'krum' needs more than the noised sum"),
        (("privacy.target-quantile=0.5",), "privacy.count-noise-stddev: missing; adaptive clipping needs it"),
        (("privacy.count-noise-stddev=9.0",), "privacy.target-quantile: missing; adaptive clipping needs it"),
        (("privacy.clip-learning-rate=0.2",), "privacy.target-quantile: missing"),
        (("privacy.target-quantile=0.5", "privacy.count-noise-stddev=0.5"), "0.5 is not above half of the noise"),
        (("privacy.mechanism=local",), "privacy.mechanism: 'local'; unit 'node' is protected by 'central'"),
        (("privacy.delta=",), "privacy.delta: missing; a claim at unit 'node' needs it"),
        (("privacy.clip-norm=",), "privacy.clip-norm: missing; a claim at unit 'node' needs it"),
    ],
)
def test_a_round_that_could_not_be_accounted_for_is_refused(make_plan, assignments: tuple[str, ...], said: str) -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(*CENTRAL, *assignments)
    assert any(said in problem for problem in refusal.value.problems)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_strategies_that_need_the_average_alone_are_offered(make_plan, strategy: str) -> None:
    momentum = ("aggregation.server-momentum=0.9",) if strategy == "fedavgm" else ()
    assert make_plan(*CENTRAL, f"aggregation.strategy={strategy}", *momentum).privacy.is_central


def test_other_units_do_not_read_what_moves_the_norm(make_plan) -> None:
    with pytest.raises(PlanError, match=r"privacy\.target-quantile: unit 'record' does not read it"):
        make_plan("privacy.target-quantile=0.5", private=True)


def test_defaults_are_written_out(make_submission) -> None:
    privacy = make_submission(*ADAPTIVE).plan.privacy
    assert (privacy.mechanism, privacy.clip_learning_rate) == ("central", 0.2)


def test_nodes_are_told_of_no_claim_of_their_own(make_submission) -> None:
    submission = make_submission(*CENTRAL)
    assert submission.records_claim is None
    assert submission.plan.privacy.record_clip_norm is None
    assert not submission.plan.privacy.hides_records


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "pld", "prv", "rdp"),
    [
        (0.01, 1.0, 1000, 1.828, 1.838, 2.101),
        (0.01, 0.6, 1000, 7.434, 7.444, 8.67),
        (0.05, 2.0, 1000, 3.700, 3.710, 4.024),
        (0.1, 1.0, 100, 7.047, 7.057, 7.90),
    ],
)
def test_a_run_costs_its_rounds_of_a_sampled_gaussian_over_nodes(
    make_submission, rate: float, noise: float, rounds: int, pld: float, prv: float, rdp: float
) -> None:
    """Numbers of three accountants of Opacus and dp-accounting, at delta 1e-5: PLD on a finer grid, PRV with its error
    term of 0.01, RDP. Neither local steps, nor the batches' rate, nor the way the norm moves change them.
    """
    assignments = (f"aggregation.fraction={rate}", f"privacy.noise-multiplier={noise}", f"run.rounds={rounds}")
    for more in ((), ("training.local-steps=50", "privacy.sampling-rate=0.9")):
        submission = make_submission(*ADAPTIVE, *assignments, *more)
        assert charged_events(submission.plan, noise) == (SampledGaussian(noise, rate, rounds),)
        assert submission.claim is not None
        assert submission.claim.epsilon == pytest.approx(pld, abs=0.005)
        assert submission.claim.epsilon <= prv + 0.005 < rdp


def test_what_was_executed_counts_rounds(make_submission) -> None:
    plan = make_submission(*CENTRAL, "run.rounds=1000").plan
    assert executed_epsilon(plan, 1.0, 1000, 1000) == Decimal(str(make_claim(make_submission, "run.rounds=1000")))
    assert executed_epsilon(plan, 1.0, 10, 10) < Decimal("0.7")


def make_claim(make_submission, *assignments: str) -> float:
    return make_submission(*CENTRAL, *assignments).claim.epsilon


def test_an_epsilon_is_reached_by_noise_over_nodes(make_submission) -> None:
    """The batches' rate of 0.5 would need much more."""
    asked = (*CENTRAL, "privacy.noise-multiplier=", "privacy.epsilon=1.83", "run.rounds=1000")
    noise = make_submission(*asked).claim.noise_multiplier
    assert noise == pytest.approx(1.0, abs=0.01)


def test_an_epsilon_whose_noise_leaves_none_for_the_count_is_refused(make_submission) -> None:
    asked = (*ADAPTIVE, "privacy.noise-multiplier=", "privacy.epsilon=0.01", "privacy.count-noise-stddev=1.0")
    with pytest.raises(PlanError, match="the count alone would cost more than the claim"):
        make_submission(*asked, "aggregation.fraction=1.0")


def test_submission_with_too_little_noise_for_the_count(make_submission) -> None:
    """A claim in bytes from outside is held against the count's noise too."""
    asked = (*ADAPTIVE, "privacy.noise-multiplier=", "privacy.epsilon=5.0", "aggregation.fraction=0.5")
    told = json.loads(make_submission(*asked).canonical)
    told["claim"]["noise_multiplier"] = 41.0
    with pytest.raises(UsageError, match="count-noise-stddev"):
        Submission.from_bytes(rfc8785.dumps(told))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 10.0), (0.5, 0.3), (3.0, 1.51), (0.1, 50.0)])
def test_sum_and_count_together_cost_what_the_claim_says(noise: float, count: float) -> None:
    """Renyi divergences of two Gaussians add up: of the sum, of sensitivity 1, and of the count, of sensitivity 1/2.

    Andrew et al. 2021, theorem 1. Without raising the sum's noise they would cost more.
    """
    orders = (2, 3, 8, 32)
    raised = sum_noise_multiplier(noise, count)
    together = (SampledGaussian(raised, 1.0, 1), SampledGaussian(2 * count, 1.0, 1))
    assert renyi_divergences(together, orders) == pytest.approx(
        renyi_divergences((SampledGaussian(noise, 1.0, 1),), orders)
    )
    assert raised > noise
    unraised = (SampledGaussian(noise, 1.0, 1), SampledGaussian(2 * count, 1.0, 1))
    assert renyi_divergences(unraised, orders)[0] > renyi_divergences(together, orders)[0]


def test_sum_and_count_have_the_epsilon_of_one_gaussian() -> None:
    """By PLD, without sampling: two mechanisms composed against one, on the grid."""
    together = (SampledGaussian(sum_noise_multiplier(2.0, 3.0), 1.0, 20), SampledGaussian(6.0, 1.0, 20))
    assert epsilon_of(together, 1e-5) == pytest.approx(epsilon_of((SampledGaussian(2.0, 1.0, 20),), 1e-5), rel=1e-3)


@pytest.mark.parametrize("count", [0.5, 0.4, 1e-3])
def test_a_count_with_too_little_noise_has_no_partner(count: float) -> None:
    with pytest.raises(ValueError, match="not above half"):
        sum_noise_multiplier(1.0, count)


def test_the_norm_moves_by_the_surplus_in_logarithms() -> None:
    assert next_clip_norm(2.0, 0.75, 0.5, 0.2) == pytest.approx(2.0 * math.exp(-0.05))
    assert next_clip_norm(2.0, -3.0, 0.5, 0.2) == pytest.approx(2.0 * math.exp(0.7))  # a noised share may be below 0
