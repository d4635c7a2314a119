"""Terms: a submission as a policy sees it. Every key of a plan is here, and each number is rounded to the safe side.

Cedar's decimals have four digits, too few for a delta: numbers are Longs in millionths, delta in units of 1e-12
(schema.cedarschema). What a plan does not bound is `LARGEST`, so that a rule that sets a limit refuses it.
"""

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ..envelope import time_of
from ..plan import Plan, Section
from ..plan_app import AppSubmission
from ..submission import Submission
from .rules import LARGEST

MILLIONTH, TRILLIONTH = Decimal("1e-6"), Decimal("1e-12")

# Keys of a strategy: they say how updates are joined, and each is told to a policy among the options.
_STRATEGY_OPTIONS = (
    "server_learning_rate",
    "server_momentum",
    "beta_1",
    "beta_2",
    "tau",
    "proximal_mu",
    "malicious_nodes",
    "selected_nodes",
    "trimmed_fraction",
)
_PRIVACY_OPTIONS = ("target_quantile", "clip_learning_rate", "count_noise_stddev")


def rounded_up(value: Decimal | float | None, unit: Decimal = MILLIONTH) -> int:
    """A bound that protects by being small, in units: rounded up; `LARGEST` where there is none.

    >>> rounded_up(3.0), rounded_up(1e-5, TRILLIONTH), rounded_up(1e-7)
    (3000000, 10000000, 1)
    """
    return min(math.ceil(found), LARGEST) if (found := _in_units(value, unit)) is not None else LARGEST


def rounded_down(value: Decimal | float | None, unit: Decimal = MILLIONTH) -> int:
    """A bound that protects by being large, in units: rounded down; 0 where there is none.

    >>> rounded_down(0.8), rounded_down(0.12345678)
    (800000, 123456)
    """
    return min(math.floor(found), LARGEST) if (found := _in_units(value, unit)) is not None else 0


def _in_units(value: Decimal | float | None, unit: Decimal) -> Fraction | None:
    """Exactly, of a float the decimal that the plan shows; None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return Fraction(value if isinstance(value, Decimal) else repr(value)) / Fraction(unit)


def terms_of(submission: Submission) -> dict[str, Any]:
    """The `Plan` of the schema, from what was signed."""
    plan, claim = submission.plan, submission.claim
    privacy, aggregation, training, evaluation = plan.privacy, plan.aggregation, plan.training, plan.evaluation
    return {
        "run": submission.run_id,
        "name": plan.run.name,
        "project": plan.run.project or "",
        "task": plan.run.task,
        "dataset": plan.dataset,
        "unit": privacy.unit,
        "mechanism": privacy.mechanism or "none",
        "isPrivate": claim is not None,
        "secureAggregation": privacy.mechanism == "distributed",
        "epsilon": rounded_up(claim.epsilon if claim else None),
        "delta": rounded_up(privacy.delta if claim else None, TRILLIONTH),
        "noiseMultiplier": rounded_down(claim.noise_multiplier if claim else None),
        "clipNorm": rounded_up(privacy.clip_norm),
        "samplingRate": rounded_up(privacy.sampling_rate),
        "rounds": plan.run.rounds,
        "spareRounds": plan.run.spare_rounds,
        "participations": plan.attempts_charged,
        "localSteps": training.local_steps,
        "evaluations": plan.evaluations_charged,
        "evaluationNoise": _evaluation_noise(plan),
        "metrics": sorted(evaluation.metrics) if evaluation else [],
        "strategy": aggregation.strategy,
        "fraction": rounded_up(aggregation.fraction),
        "minNodes": aggregation.min_nodes,
        "deadline": LARGEST if aggregation.deadline is None else int(-(-aggregation.deadline // 1)),
        "updatePrecision": aggregation.update_precision or "float32",
        "optimizer": training.optimizer,
        "learningRate": rounded_up(training.learning_rate),
        "momentum": rounded_up(training.momentum),
        "weightDecay": rounded_up(training.weight_decay),
        "options": _options(plan),
        "seed": plan.run.seed,
        "expires": _day(submission.body.expires),
    }


def app_terms_of(submission: AppSubmission) -> dict[str, Any]:
    """What the schema's `runApp` says of an app's run, from what was signed."""
    plan = submission.plan
    return {
        "run": submission.run_id,
        "name": plan.run.name,
        "minNodes": plan.app.min_nodes,
        "options": sorted(f"{key}={value}" for key, value in plan.app.config.items()),
        "expires": _day(submission.body.expires),
    }


def _evaluation_noise(plan: Plan) -> int:
    if plan.evaluation is None:
        return LARGEST  # nothing is evaluated: no noise is missing
    return rounded_down(plan.evaluation.noise_multiplier)


def _options(plan: Plan) -> list[str]:
    """Each under whose it is: a model may have a key that the strategy has too."""
    of_strategy = {f"strategy.{text}" for text in _spelled(plan.aggregation, _STRATEGY_OPTIONS)}
    of_privacy = {f"privacy.{text}" for text in _spelled(plan.privacy, _PRIVACY_OPTIONS)}
    return sorted(of_strategy | of_privacy | {f"model.{key}={value}" for key, value in plan.model.items()})


def _spelled(section: Section, keys: Iterable[str]) -> Iterator[str]:
    """Of these keys those that are given, as a plan's file spells them."""
    for key in keys:
        if (value := getattr(section, key)) is not None:
            yield f"{key.replace('_', '-')}={value}"


def _day(text: str) -> int:
    return int(f"{time_of(text):%Y%m%d}")
