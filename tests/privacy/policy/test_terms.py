"""No term of a plan is invisible to a policy, and every number is on the side that protects."""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import NODE_CONTEXT, changed, dataset, operator
from privet.privacy.plan import Plan, Section
from privet.privacy.plan_app import AppPlan, resolve_app
from privet.privacy.policy.rules import LARGEST, Entity, Question, Rules
from privet.privacy.policy.terms import MILLIONTH, TRILLIONTH, app_terms_of, rounded_down, rounded_up, terms_of
from privet.privacy.submission import Submission
from pydantic import BaseModel
from signers import NOW

Make = Callable[..., Submission]

EVALUATED = ("evaluation.noise-multiplier=20.0",)
ADAM = ("aggregation.strategy=fedadam",)
KRUM = ("aggregation.strategy=multikrum", "aggregation.malicious-nodes=1", "aggregation.selected-nodes=2")
TRIMMED = ("aggregation.strategy=fedtrimmedavg", "aggregation.trimmed-fraction=0.1")
MOVING = ("aggregation.strategy=fedavgm", "aggregation.server-momentum=0.1")
PROXIMAL = ("aggregation.strategy=fedprox", "aggregation.proximal-mu=0.1")
PRIVATE = ("privacy.unit=record", "privacy.delta=1e-5", "privacy.clip-norm=1.0")
ADAPTIVE = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "aggregation.fraction=0.5",
    "privacy.target-quantile=0.5",
    "privacy.count-noise-stddev=2.0",
)
# Of every key: a plan, and one assignment that makes it another.
CHANGES: dict[str, tuple[tuple[str, ...], str]] = {
    "run.name": ((), "other"),
    "run.task": (("run.dataset=ward7",), "other"),
    "run.dataset": ((), "ward7"),
    "run.project": ((), "kidney"),
    "run.seed": ((), "4"),
    "run.rounds": (("aggregation.participations=2",), "5"),
    "run.spare-rounds": (("aggregation.participations=2",), "2"),
    "model": ((), ""),  # below: it has no keys of its own
    "aggregation.strategy": ((), "fedmedian"),
    "aggregation.fraction": ((), "0.5"),
    "aggregation.min-nodes": ((), "3"),
    "aggregation.participations": ((), "3"),
    "aggregation.deadline": ((), "60.0"),
    "aggregation.update-precision": ((), "bfloat16"),
    "aggregation.server-learning-rate": (ADAM, "0.2"),
    "aggregation.server-momentum": (MOVING, "0.2"),
    "aggregation.beta-1": (ADAM, "0.2"),
    "aggregation.beta-2": (ADAM, "0.2"),
    "aggregation.tau": (ADAM, "0.2"),
    "aggregation.proximal-mu": (PROXIMAL, "0.2"),
    "aggregation.malicious-nodes": (KRUM, "2"),
    "aggregation.selected-nodes": (KRUM, "3"),
    "aggregation.trimmed-fraction": (TRIMMED, "0.2"),
    "training.local-steps": ((), "3"),
    "training.optimizer": ((), "adam"),
    "training.learning-rate": ((), "0.25"),
    "training.momentum": ((), "0.5"),
    "training.weight-decay": ((), "0.5"),
    "privacy.unit": ((), ""),  # below: a claim comes with it
    "privacy.mechanism": ((), ""),  # below: no other is built yet
    "privacy.epsilon": ((*PRIVATE, "privacy.epsilon=3.0"), "2.0"),
    "privacy.noise-multiplier": ((*PRIVATE, "privacy.noise-multiplier=4.0"), "5.0"),
    "privacy.delta": ((*PRIVATE, "privacy.epsilon=3.0"), "1e-6"),
    "privacy.clip-norm": ((*PRIVATE, "privacy.epsilon=3.0"), "2.0"),
    "privacy.sampling-rate": ((), "0.25"),
    "privacy.target-quantile": (ADAPTIVE, "0.6"),
    "privacy.clip-learning-rate": (ADAPTIVE, "0.3"),
    "privacy.count-noise-stddev": (ADAPTIVE, "3.0"),
    "evaluation.every": (("evaluation.every=1",), "2"),
    "evaluation.metrics": (("evaluation.every=1",), '["accuracy", "recall"]'),
    "evaluation.noise-multiplier": ((*PRIVATE, "privacy.noise-multiplier=4.0", *EVALUATED), "30.0"),
}


def keys_of(model: type[BaseModel], within: str = "") -> Iterator[str]:
    """Every key of a plan, as a file spells it; of `[simulation]` none, since it is never submitted."""
    for name, field in model.model_fields.items():
        spelled = within + (field.alias or name)
        options = getattr(field.annotation, "__args__", (field.annotation,))
        inner = [one for one in options if isinstance(one, type) and issubclass(one, Section)]
        if spelled == "simulation":
            continue
        if inner:
            yield from keys_of(inner[0], f"{spelled}.")
        else:
            yield spelled


def test_every_key_of_a_plan_has_its_example() -> None:
    assert set(CHANGES) == set(keys_of(Plan))


@pytest.mark.parametrize("key", [key for key, (_, value) in CHANGES.items() if value])
def test_every_key_is_seen_by_a_policy(make_submission: Make, key: str) -> None:
    given, value = CHANGES[key]
    before, after = make_submission(*given), make_submission(*given, f"{key}={value}")
    assert terms_of(before) != terms_of(after)


def test_a_claim_its_mechanism_and_every_option_are_seen(make_submission: Make) -> None:
    without, private = make_submission(), make_submission(private=True)
    assert (terms_of(without)["unit"], terms_of(private)["unit"]) == ("none", "record")
    assert (terms_of(without)["mechanism"], terms_of(private)["mechanism"]) == ("none", "local")
    distributed = altered(private, "privacy", mechanism="distributed")
    assert [terms_of(one)["secureAggregation"] for one in (private, distributed)] == [False, True]
    other = make_submission("model.hidden=7", "model.deep=true")
    assert set(terms_of(other)["options"]) - set(terms_of(without)["options"]) == {
        "model.hidden=7",
        "model.deep=True",
    }


def test_a_models_option_is_not_taken_for_the_strategys(make_submission: Make) -> None:
    of_model, of_strategy = make_submission("model.tau=0.2", *ADAM), make_submission("aggregation.tau=0.2", *ADAM)
    assert "strategy.tau=0.2" in terms_of(of_strategy)["options"]
    assert "strategy.tau=0.2" not in terms_of(of_model)["options"]
    assert "model.tau=0.2" in terms_of(of_model)["options"]


def altered(submission: Submission, section: str, **values: object) -> Submission:
    """A submission with other values, whether they can be meant or not."""
    plan, body = submission.plan, submission.body
    part = getattr(plan, section).model_copy(update=values)
    return Submission(body.model_copy(update={"plan": plan.model_copy(update={section: part})}))


def claiming(submission: Submission, **values: object) -> Submission:
    claim = submission.claim
    assert claim is not None
    return Submission(submission.body.model_copy(update={"claim": claim.model_copy(update=values)}))


def test_plan_without_a_claim_has_the_largest_epsilon_and_no_noise(make_submission: Make) -> None:
    terms = terms_of(make_submission())
    assert {name: terms[name] for name in ("epsilon", "delta", "clipNorm")} == dict.fromkeys(
        ("epsilon", "delta", "clipNorm"), LARGEST
    )
    assert (terms["noiseMultiplier"], terms["isPrivate"], terms["deadline"]) == (0, False, LARGEST)
    assert terms["evaluationNoise"] == LARGEST  # nothing is evaluated
    assert terms_of(make_submission("evaluation.every=1"))["evaluationNoise"] == 0


@pytest.mark.parametrize(
    ("term", "section", "field"),
    [
        ("clipNorm", "privacy", "clip_norm"),
        ("samplingRate", "privacy", "sampling_rate"),
        ("fraction", "aggregation", "fraction"),
        ("learningRate", "training", "learning_rate"),
        ("momentum", "training", "momentum"),
        ("weightDecay", "training", "weight_decay"),
    ],
)
def test_what_protects_by_being_small_is_rounded_up(make_submission: Make, term: str, section: str, field: str) -> None:
    assert terms_of(altered(make_submission(private=True), section, **{field: 0.1234561}))[term] == 123_457


def test_epsilon_and_delta_are_rounded_up_and_noise_down(make_submission: Make) -> None:
    submission = make_submission(*EVALUATED, private=True)
    assert terms_of(claiming(submission, epsilon=1.0000001))["epsilon"] == 1_000_001
    assert terms_of(claiming(submission, noise_multiplier=0.7999999))["noiseMultiplier"] == 799_999
    assert terms_of(altered(submission, "privacy", delta=1.5e-12))["delta"] == 2
    assert terms_of(altered(submission, "evaluation", noise_multiplier=0.7999999))["evaluationNoise"] == 799_999
    assert terms_of(altered(submission, "aggregation", deadline=60.25))["deadline"] == 61


def test_terms_are_those_of_the_schema(make_submission: Make) -> None:
    """Cedar itself says so: it takes neither fewer nor more, and no other types."""
    everything = Rules('@id("all") permit (principal, action, resource);\n// end of policy')

    def error_of(terms: dict[str, Any]) -> str:
        context = changed({**NODE_CONTEXT["admit"], "plan": terms}, {})
        others = (Entity(("Task", "digits")),)
        return everything.decide(Question(operator("alice"), "admit", dataset("ward7"), context, others)).error

    for submission in (make_submission(), make_submission(*EVALUATED, private=True)):
        terms = terms_of(submission)
        assert error_of(terms) == ""
        for name, value in terms.items():
            assert error_of({key: told for key, told in terms.items() if key != name})
            assert error_of({**terms, name: [value] if isinstance(value, str | bool | int) else 1})
        assert error_of({**terms, "another": 1})


def test_app_is_seen_with_its_config() -> None:
    told = {"run": {"name": "a"}, "app": {"name": "q", "config": {"lr": 0.5}}, "privacy": {"unit": "none"}}
    app = resolve_app(AppPlan.model_validate(told), federation="test", run_id="a-1", operator="alice", now=NOW)
    terms = app_terms_of(app)
    assert (terms["run"], terms["name"], terms["options"], terms["minNodes"]) == ("a-1", "a", ["lr=0.5"], 2)


UNITS = st.sampled_from([MILLIONTH, TRILLIONTH])
NUMBERS = st.one_of(
    st.floats(min_value=0, max_value=1e6),
    st.decimals(min_value=0, max_value=10**6, allow_nan=False, allow_infinity=False, places=40),
    st.floats(min_value=0, max_value=1e-4),
)


def shown(value: Decimal | float) -> Fraction:
    """The number as a plan shows it: of a float its shortest decimal."""
    return Fraction(value) if isinstance(value, Decimal) else Fraction(repr(value))


@given(value=NUMBERS, unit=UNITS)
def test_rounded_up_is_the_smallest_whole_number_of_units_above(value: Decimal | float, unit: Decimal) -> None:
    exact = shown(value) / Fraction(unit)
    assert exact <= rounded_up(value, unit) < exact + 1 or rounded_up(value, unit) == LARGEST < exact


@given(value=NUMBERS, unit=UNITS)
def test_rounded_down_is_the_largest_whole_number_of_units_below(value: Decimal | float, unit: Decimal) -> None:
    exact = shown(value) / Fraction(unit)
    assert exact - 1 < rounded_down(value, unit) <= exact


@pytest.mark.parametrize("value", [1e13, 1e300, math.inf, Decimal("Infinity"), Decimal("NaN"), math.nan])
def test_what_is_beyond_a_long_is_without_bound(value: Decimal | float) -> None:
    assert rounded_up(value) == LARGEST


def test_a_digit_far_behind_the_point_is_not_lost() -> None:
    """The decimal module's own precision is 28 digits: arithmetic in it would round such a number to the nearest."""
    beyond = Decimal("3." + 40 * "0" + "1")
    below = Decimal("0.7" + 40 * "9")
    assert (rounded_up(beyond), rounded_down(below)) == (3_000_001, 799_999)


def test_noise_that_is_no_number_is_none() -> None:
    assert rounded_down(math.nan) == rounded_down(Decimal("NaN")) == rounded_down(None) == 0
