"""Comparisons: the same plan with one thing changed and nothing else, for `--compare`.

`without-privacy` shows what a claim costs; `without-faults` what faults do; `under-fedavg` what the plan's strategy is
worth against nodes that lie. Each comparison has ledgers of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..privacy.plan import EvaluationSection, Plan, PrivacySection, SimulationSection
from ..privacy.plan_strategies import STRATEGY_KEYS
from .views import RoundView

WITHOUT_PRIVACY, WITHOUT_FAULTS, UNDER_FEDAVG = KINDS = ("without-privacy", "without-faults", "under-fedavg")


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison gave, round by round. `ended`: why it went no further, where it did not reach its end."""

    views: Sequence[RoundView]
    ended: str | None = None

    @property
    def accuracy(self) -> float | None:
        """Of its last model; None where the task has no such metric."""
        return self.views[-1].scores.get("accuracy") if self.views else None


def comparisons(plan: Plan) -> dict[str, Plan]:
    """The plans that a plan is compared with, by kind, which is also the name of the folder."""
    faults = plan.simulation.faults if plan.simulation else None
    plans = {}
    if plan.privacy.is_private:
        plans[WITHOUT_PRIVACY] = without_privacy(plan)
    if faults is not None and faults.is_any:
        plans[WITHOUT_FAULTS] = without_faults(plan)
    if faults is not None and faults.is_lying and plan.aggregation.strategy != "fedavg":
        plans[UNDER_FEDAVG] = under_fedavg(plan)
    return plans


def without_privacy(plan: Plan) -> Plan:
    """Clipping, noise and claim taken out, and with them what may only be released under them."""
    privacy = PrivacySection.model_validate({"unit": "none", "sampling-rate": plan.privacy.sampling_rate})
    evaluation: EvaluationSection | None = None
    return _named(plan, WITHOUT_PRIVACY).model_copy(update={"privacy": privacy, "evaluation": evaluation})


def without_faults(plan: Plan) -> Plan:
    """All nodes behave."""
    simulation = (plan.simulation or SimulationSection()).model_copy(update={"faults": None})
    return _named(plan, WITHOUT_FAULTS).model_copy(update={"simulation": simulation})


def under_fedavg(plan: Plan) -> Plan:
    """The weighted average in the place of the plan's strategy, without the keys that it does not read."""
    keys = dict.fromkeys(STRATEGY_KEYS[plan.aggregation.strategy])
    aggregation = plan.aggregation.model_copy(update={"strategy": "fedavg", **keys})
    return _named(plan, UNDER_FEDAVG).model_copy(update={"aggregation": aggregation})


def _named(plan: Plan, kind: str) -> Plan:
    run = plan.run.model_copy(update={"name": f"{plan.run.name[:40]}-{kind}"})
    return plan.model_copy(update={"run": run})
