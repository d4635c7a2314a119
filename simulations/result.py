"""result.json: what a finished simulation says of itself. Its epsilons were computed from what was really asked."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

from ..privacy.budget.accounting import PLD_GRID, checking_bound
from ..privacy.budget.charge import charged_events, sampling_rate_of
from ..privacy.budget.events import RELATION
from ..privacy.budget.guard import Standing
from ..privacy.plan import Plan
from ..server.central import clip_norm_in
from ..server.checkpoints import State
from .comparisons import UNDER_FEDAVG, WITHOUT_FAULTS, WITHOUT_PRIVACY, Compared
from .faults import DELAY, DROP, ByRound
from .faults import KINDS as FAULTS
from .scenario import Scenario
from .versions import versions
from .views import RoundView

FORMAT = 1
ACCURACY_NOTE = "simulator's view, not a release"
# Of unit `node`, beside its epsilon: rounds and nodes are listed with presences that nothing hides.
PRESENCE_NOTE = "who took part, and how many answered, is the simulator's view, not a release: no noise is on it"
# A seeded simulation's noise protects nobody; the epsilon is that of the same plan with fresh noise.
NOISE_NOTE = "epsilon is that of the plan with fresh noise; this run's noise is seeded and protects nobody"
CENTRAL_NOTE = (
    "epsilon is that of the plan with fresh noise and a secret sample of nodes; here both are seeded and protect nobody"
)

# Why a node is missing from a round, where the server knows no more than that no answer came.
_MISSED = {DROP: "dropped", DELAY: "delayed"}

Json = dict[str, object]


def result_of(scenario: Scenario, state: State, seconds: float, compared: Mapping[str, Compared]) -> Json:
    """The whole of result.json. `compared`: by kind, see comparisons.py."""
    plan, submission = scenario.submission.plan, scenario.submission
    views = scenario.views.until(state.round)
    last = views[-1].scores
    deeds = scenario.deeds.until(state.round)
    return {
        "format": FORMAT,
        "name": plan.run.name,
        "run_id": submission.run_id,
        "task": plan.run.task,
        "task_version": scenario.world.task.version,
        "dataset": plan.dataset,
        "model": scenario.trainable.options,
        "plan_hash": scenario.plan_hash,
        "submission_hash": submission.hash,
        "seed": plan.run.seed,
        "accuracy": last.get("accuracy"),
        "accuracy_note": ACCURACY_NOTE,
        "loss": last["loss"],
        "accuracy_without_privacy": _accuracy(compared.get(WITHOUT_PRIVACY)),
        "accuracy_without_faults": _accuracy(compared.get(WITHOUT_FAULTS)),
        "accuracy_under_fedavg": _accuracy(compared.get(UNDER_FEDAVG)),
        **_privacy_of(scenario, state),
        "sampling_rate": sampling_rate_of(plan),
        "local_sampling_rate": plan.privacy.sampling_rate,
        "local_steps": plan.training.local_steps,
        "rounds": state.round,
        "rounds_charged": plan.attempts_charged,
        "evaluations_charged": plan.evaluations_charged,
        "seconds": round(seconds, 3),
        "engine": scenario.engine.name,
        "engine_reason": scenario.engine.why,
        "strategy": plan.aggregation.strategy,
        "faults": _faults(scenario.plan),
        "interrupted": state.round < plan.run.rounds,
        "classes": list(scenario.world.facts.classes),
        "partition": {"kind": scenario.world.section.partition, **_partition_terms(scenario)},
        "records": {
            "training": sum(len(share.indices) for share in scenario.world.shares.values()),
            "held_out": len(scenario.world.held_out),
        },
        "nodes": _nodes(scenario, state, deeds),
        "history": [_round(view, deeds) for view in views],
        "history_without_privacy": _history(compared.get(WITHOUT_PRIVACY)),
        "history_without_faults": _history(compared.get(WITHOUT_FAULTS)),
        "history_under_fedavg": _history(compared.get(UNDER_FEDAVG)),
        "comparisons_ended": {kind: other.ended for kind, other in compared.items() if other.ended},
        "versions": versions(),
    }


def write_result(result: Json, path: Path) -> None:
    """As indented JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _privacy_of(scenario: Scenario, state: State) -> Json:
    """The claim, and what was charged and executed at the node that was charged most."""
    plan, claim = scenario.submission.plan, scenario.submission.claim
    delta = plan.privacy.delta
    if claim is None or delta is None:
        nothing = (
            "epsilon",
            "epsilon_executed",
            "epsilon_rdp_bound",
            "delta",
            "relation",
            "mechanism",
            "noise_multiplier",
        )
        return {
            **dict.fromkeys((*nothing, "clip_norm", "clip_norm_at_end", "accountant", "noise_note", "presence_note")),
            "unit": plan.privacy.unit,
            "noise_seeded": False,
        }
    standings = scenario.standings()
    return {
        "epsilon": float(max(standing.epsilon or Decimal(0) for standing in standings)),
        "epsilon_executed": float(max(standing.epsilon_executed or Decimal(0) for standing in standings)),
        "epsilon_rdp_bound": checking_bound(charged_events(plan, claim.noise_multiplier), delta),
        "delta": delta,
        "unit": plan.privacy.unit,
        "relation": RELATION,
        "mechanism": plan.privacy.mechanism,
        "noise_multiplier": claim.noise_multiplier,
        "clip_norm": plan.privacy.clip_norm,
        "clip_norm_at_end": clip_norm_in(state.strategy) if plan.privacy.target_quantile is not None else None,
        "noise_seeded": True,
        "noise_note": CENTRAL_NOTE if plan.privacy.is_central else NOISE_NOTE,
        "presence_note": PRESENCE_NOTE if plan.privacy.is_central else None,
        "accountant": f"PLD (dp-accounting {version('dp-accounting')}, grid {PLD_GRID:g})",
    }


def _accuracy(other: Compared | None) -> float | None:
    return other.accuracy if other else None


def _history(other: Compared | None) -> list[Json] | None:
    return [_round(view, {}) for view in other.views] if other else None


def _faults(plan: Plan) -> Json | None:
    """As they were asked for."""
    section = plan.simulation.faults if plan.simulation else None
    return section.model_dump() if section and section.is_any else None


def _nodes(scenario: Scenario, state: State, deeds: ByRound) -> list[Json]:
    """Each node's own, at the same epsilon for all where whole nodes are hidden: the server's ledger has no nodes."""
    counts, names = _counted(deeds), scenario.world.shares
    if not scenario.submission.plan.privacy.is_central:
        standings = {name: scenario.standing(name) for name in names}
    else:
        (standing,) = scenario.standings()
        lost = Counter(name for report in state.history for name in report.failures)
        answered = {name: asked - lost[name] for name, asked in state.participations.items()}
        standings = {name: replace(standing, answered=answered.get(name, 0)) for name in names}
    failures = _failures(state, deeds)
    return [_node(scenario, state, name, standings[name], failures.get(name), counts.get(name, {})) for name in names]


def _failures(state: State, deeds: ByRound) -> dict[str, str]:
    """Why nodes are missing from the last round, by name; where a fault is why no answer came, its word."""
    failures = dict(state.history[-1].failures) if state.history else {}
    words = {name: word for kind, word in _MISSED.items() for name in deeds.get(state.round, {}).get(kind, ())}
    return {name: words.get(name, why) for name, why in failures.items()}


def _node(
    scenario: Scenario, state: State, name: str, standing: Standing, failure: str | None, did: Mapping[str, int]
) -> Json:
    return {
        "name": name,
        "declared_size": len(scenario.world.shares[name].indices),
        "epsilon": float(standing.epsilon) if standing.epsilon is not None else None,
        "epsilon_executed": float(standing.epsilon_executed) if standing.epsilon_executed is not None else None,
        "state": "refused" if name in state.excluded else "failed" if failure else "finished",
        "reason": state.excluded.get(name) or failure,
        "rounds_answered": standing.answered,
        "labels": scenario.world.labels_of(name),
        "faults": dict(did),
    }


def _counted(deeds: ByRound) -> dict[str, dict[str, int]]:
    """By node, in how many rounds it did what."""
    counts: dict[str, dict[str, int]] = {}
    for kind in FAULTS:
        for name, count in Counter(name for did in deeds.values() for name in did.get(kind, ())).items():
            counts.setdefault(name, {})[kind] = count
    return counts


def _round(view: RoundView, deeds: ByRound) -> Json:
    return {
        "round": view.round,
        "accuracy": view.scores.get("accuracy"),
        "loss": view.scores["loss"],
        "epsilon_executed": float(view.epsilon_executed) if view.epsilon_executed is not None else None,
        "answered": view.answered,
        "released": view.released or None,
        "faults": {kind: len(names) for kind, names in deeds.get(view.round, {}).items()},
    }


def _partition_terms(scenario: Scenario) -> Json:
    section = scenario.world.section
    terms = {"alpha": section.alpha, "shards_per_node": section.shards_per_node, "sizes": section.sizes}
    return {key: value for key, value in terms.items() if value is not None}
