from collections.abc import Callable

import pytest
from privet.privacy.errors import PlanError
from privet.privacy.plan import Plan
from privet.privacy.plan_strategies import KEEPING_STRATEGIES, REQUIRED_STRATEGY_KEYS, STREAMING_STRATEGIES
from pydantic import ValidationError

MakePlan = Callable[..., Plan]

# What each strategy needs before it can be meant.
NEEDS = {
    "fedprox": ("aggregation.proximal-mu=0.1",),
    "fedavgm": ("aggregation.server-momentum=0.9",),
    "krum": ("aggregation.malicious-nodes=1",),
    "multikrum": ("aggregation.malicious-nodes=1", "aggregation.selected-nodes=2"),
    "bulyan": ("aggregation.malicious-nodes=1",),
    "fedtrimmedavg": ("aggregation.trimmed-fraction=0.1",),
}


def problems_of(make_plan: MakePlan, *assignments: str, private: bool = False) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        make_plan(*assignments, private=private)
    return caught.value.problems


@pytest.mark.parametrize("strategy", [*STREAMING_STRATEGIES, *KEEPING_STRATEGIES])
def test_every_strategy_can_be_asked_for(make_plan: MakePlan, strategy: str) -> None:
    plan = make_plan(f"aggregation.strategy={strategy}", *NEEDS.get(strategy, ()))
    assert plan.keeps_updates == (strategy in KEEPING_STRATEGIES)


@pytest.mark.parametrize("strategy", sorted(REQUIRED_STRATEGY_KEYS))
def test_a_strategy_without_what_makes_it_one_is_refused(make_plan: MakePlan, strategy: str) -> None:
    problems = problems_of(make_plan, f"aggregation.strategy={strategy}")
    named = [assignment.split("=")[0] for assignment in NEEDS[strategy]]
    assert [problem.split(": ")[1] for problem in problems] == named
    assert all(problem.endswith(f"missing; strategy '{strategy}' needs it") for problem in problems)


def test_a_key_that_the_strategy_does_not_read_is_refused(make_plan: MakePlan) -> None:
    (problem,) = problems_of(make_plan, "aggregation.beta-1=0.9")
    assert problem == "--set: aggregation.beta-1: strategy 'fedavg' does not read it"


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("fedadm", "unknown strategy 'fedadm'; did you mean fedadam?"),
        ("FedAvg", "unknown strategy 'FedAvg'; did you mean fedavg?"),
        ("zzz", "unknown strategy 'zzz'; known: fedavg, fedprox,"),
        ("qfedavg", "'qfedavg' is not offered: it weighs each node by its training loss"),
        ("dp-fixed-clipping", "'dp-fixed-clipping' is not offered: unit = \"node\" does it, with the noise"),
    ],
)
def test_an_unknown_strategy_is_answered_with_the_nearest_or_the_reason(
    make_plan: MakePlan, strategy: str, said: str
) -> None:
    (problem,) = problems_of(make_plan, f"aggregation.strategy={strategy}")
    assert f"aggregation.strategy: {said}" in problem


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (("privacy.unit=group",), "privacy.unit: 'group' is not built yet"),
        (("privacy.unit=node", "privacy.mechanism=local"), "mechanism: 'local'; unit 'node' is protected by 'central'"),
        (("privacy.mechanism=distributed",), "privacy.mechanism: 'distributed' is not built yet"),
        (("privacy.mechanism=central",), "mechanism: 'central'; unit 'record' is protected by 'local'"),
        (("privacy.epsilon=3",), "exactly one of epsilon and noise-multiplier must be given; both are"),
        (("privacy.noise-multiplier=",), "exactly one of epsilon and noise-multiplier must be given; neither is"),
        (("privacy.delta=",), "privacy.delta: missing; a claim at unit 'record' needs it"),
        (("privacy.clip-norm=",), "privacy.clip-norm: missing; a claim at unit 'record' needs it"),
        (("evaluation.every=2",), "evaluation.noise-multiplier: missing; metrics on private records leave a node only"),
        (("run.rounds=100000", "training.local-steps=100"), "training.local-steps: 10000100 noisy steps at a node"),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused(make_plan: MakePlan, assignments: tuple[str, ...], said: str) -> None:
    assert any(said in problem for problem in problems_of(make_plan, *assignments, private=True))


@pytest.mark.parametrize(
    "assignment",
    [
        "privacy.mechanism=local",
        "privacy.epsilon=3",
        "privacy.noise-multiplier=1",
        "privacy.delta=1e-5",
        "privacy.clip-norm=1",
    ],
)
def test_terms_of_a_claim_without_a_claim_are_refused(make_plan: MakePlan, assignment: str) -> None:
    (problem,) = problems_of(make_plan, assignment)
    assert problem.endswith("unit 'none' makes no claim, so it may not be given")


def test_an_evaluation_that_never_comes_is_refused(make_plan: MakePlan) -> None:
    """It would silently evaluate nothing: the last round is the 4th."""
    (problem,) = problems_of(make_plan, "evaluation.every=5")
    assert problem.endswith("evaluation.every: 5, but there are 4 rounds: none is evaluated")
    assert make_plan("evaluation.every=4").evaluations_charged == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "604801", "inf", "nan"])
def test_a_deadline_that_is_none_is_refused(make_plan: MakePlan, seconds: str) -> None:
    (problem,) = problems_of(make_plan, f"aggregation.deadline={seconds}")
    assert "aggregation.deadline" in problem
    assert make_plan("aggregation.deadline=604800").aggregation.deadline == 604800


def test_evaluation_noise_without_a_claim_is_refused(make_plan: MakePlan) -> None:
    (problem,) = problems_of(make_plan, "evaluation.noise-multiplier=20")
    assert problem.endswith("evaluation.noise-multiplier: unit 'none' makes no claim, so it may not be given")


@pytest.mark.parametrize(
    ("section_key", "low", "high", "outside"),
    [
        ("run.rounds", "1", "100000", ("0", "100001", "1.5", "true", '"3"')),
        ("run.spare-rounds", "0", "100000", ("-1", "100001")),
        ("run.seed", "0", str(2**53 - 1), ("-1", str(2**53))),
        ("training.local-steps", "1", "100000", ("0", "100001")),
        ("training.learning-rate", "1e-9", "1e9", ("0", "-1", "inf", "nan", "true")),
        ("training.momentum", "0", "0.999", ("1", "-0.1", "nan")),
        ("training.weight-decay", "0", "10", ("-1e-9", "inf", "nan")),
        ("privacy.sampling-rate", "1e-9", "1", ("0", "1.0001", "nan", "inf")),
        ("privacy.noise-multiplier", "0.05", "1e6", ("0.0499", "1e7", "0", "nan", "inf")),
        ("privacy.delta", "1e-12", "0.5", ("1e-13", "0", "1", "nan")),
        ("privacy.clip-norm", "1e-9", "1e9", ("0", "-1", "nan", "inf")),
        ("aggregation.fraction", "0.001", "1", ("0", "1.1", "nan")),
        ("aggregation.min-nodes", "1", "100000", ("0", "100001")),
    ],
)
def test_every_number_has_its_range(
    make_plan: MakePlan, section_key: str, low: str, high: str, outside: tuple[str, ...]
) -> None:
    for value in (low, high):
        make_plan(f"{section_key}={value}", private=True)
    for value in outside:
        (problem,) = problems_of(make_plan, f"{section_key}={value}", private=True)
        assert problem.startswith(f"--set: {section_key}: input should be ")
        assert ", got " in problem


@pytest.mark.parametrize("epsilon", ["0", "-1", "100.1", "inf", "nan"])
def test_an_epsilon_that_protects_nobody_or_cannot_be_is_refused(make_plan: MakePlan, epsilon: str) -> None:
    (problem,) = problems_of(make_plan, "privacy.noise-multiplier=", f"privacy.epsilon={epsilon}", private=True)
    assert problem.startswith("--set: privacy.epsilon: input should be ")


@pytest.mark.parametrize("name", ["", "Digits", "-a", "a/b", "../a", "a b", "a\\n", "é", "a" * 64])
def test_a_name_is_one_that_files_and_certificates_can_bear(make_plan: MakePlan, name: str) -> None:
    for key in ("run.name", "run.task", "run.dataset"):
        (problem,) = problems_of(make_plan, f'{key}="{name}"')
        assert problem.startswith(f"--set: {key}: string should match pattern")


def test_momentum_under_adam_is_refused(make_plan: MakePlan) -> None:
    (problem,) = problems_of(make_plan, "training.optimizer=adam", "training.momentum=0.9")
    assert problem == "--set: training.momentum: optimizer 'adam' does not read it"
    make_plan("training.optimizer=adam")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (("simulation.partition=dirichlet",), "alpha: missing; partition 'dirichlet' needs it"),
        (("simulation.partition=shards",), "shards-per-node: missing; partition 'shards' needs it"),
        (("simulation.alpha=0.3",), "alpha: partition 'iid' does not read it"),
        (("simulation.partition=sizes", "simulation.sizes=[1.0, 2.0]"), "sizes: 2 sizes for 3 nodes"),
        (("simulation.held-out=1",), "held-out: input should be less than 1"),
    ],
)
def test_a_partition_that_cannot_be_meant_is_refused(
    make_plan: MakePlan, assignments: tuple[str, ...], said: str
) -> None:
    (problem,) = problems_of(make_plan, *assignments)
    assert f"simulation.{said}" in problem


@pytest.mark.parametrize("value", ["nan", "inf", "1e20", str(2**53), "[1]", "{a = 1}", "1979-05-27", '"a\\nb"'])
def test_an_option_that_canonical_json_cannot_bear_is_refused(make_plan: MakePlan, value: str) -> None:
    """Each of these once made a plan that was valid and a submission that nobody could hash."""
    (problem,) = problems_of(make_plan, f"model.records={value}")
    assert problem.startswith("--set: model.records: an option is true or false, a number of at most")


def test_a_whole_number_is_one_option_however_it_is_spelled(make_plan: MakePlan) -> None:
    option = make_plan("model.features=4.0").model["features"]
    assert type(option) is int
    assert type(make_plan("model.flag=true").model["flag"]) is bool
    assert type(make_plan("model.rate=0.5").model["rate"]) is float


def test_the_data_set_bears_the_name_of_the_task_by_default(make_plan: MakePlan) -> None:
    assert make_plan().dataset == "synthetic"
    assert make_plan("run.dataset=ours").dataset == "ours"


def test_every_problem_is_told_at_once(make_plan: MakePlan) -> None:
    problems = problems_of(
        make_plan, "privacy.delta=", "privacy.clip-norm=", "aggregation.tau=1.0", "evaluation.every=1", private=True
    )
    assert [problem.split(": ")[1] for problem in problems] == [
        "aggregation.tau",
        "privacy.delta",
        "privacy.clip-norm",
        "evaluation.noise-multiplier",
    ]


def test_a_plan_cannot_be_changed(make_plan: MakePlan) -> None:
    plan = make_plan()
    with pytest.raises(ValidationError, match="frozen"):
        plan.run.rounds = 5  # type: ignore[misc]
