"""result.json: what a finished simulation says of itself. Its epsilons were computed from what was really asked."""

import json
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

from ..privacy.budget.accounting import PLD_GRID, checking_bound
from ..privacy.budget.charge import charged_events
from ..privacy.budget.events import RELATION
from ..server.checkpoints import State
from .scenario import Scenario, versions
from .views import RoundView

FORMAT = 1
ACCURACY_NOTE = "simulator's view, not a release"
# A seeded simulation's noise protects nobody; the epsilon is that of the same plan with fresh noise.
NOISE_NOTE = "epsilon is that of the plan with fresh noise; this run's noise is seeded and protects nobody"

Json = dict[str, object]


def result_of(scenario: Scenario, state: State, seconds: float, compared: tuple[Scenario, State] | None) -> Json:
    """The whole of result.json."""
    plan, submission = scenario.submission.plan, scenario.submission
    views = scenario.views.until(state.round)
    last = views[-1].scores
    others = compared[0].views.until(compared[1].round) if compared else None
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
        "accuracy_without_privacy": others[-1].scores.get("accuracy") if others else None,
        **_privacy_of(scenario),
        "sampling_rate": plan.privacy.sampling_rate,
        "local_steps": plan.training.local_steps,
        "rounds": state.round,
        "rounds_charged": plan.attempts_charged,
        "evaluations_charged": plan.evaluations_charged,
        "seconds": round(seconds, 3),
        "engine": scenario.engine.name,
        "engine_reason": scenario.engine.why,
        "strategy": plan.aggregation.strategy,
        "interrupted": state.round < plan.run.rounds,
        "classes": list(scenario.world.facts.classes),
        "partition": {"kind": scenario.world.section.partition, **_partition_terms(scenario)},
        "records": {
            "training": sum(len(share.indices) for share in scenario.world.shares.values()),
            "held_out": len(scenario.world.held_out),
        },
        "nodes": [_node(scenario, state, name) for name in scenario.world.shares],
        "history": [_round(view) for view in views],
        "history_without_privacy": [_round(view) for view in others] if others else None,
        "versions": versions(),
    }


def write_result(result: Json, path: Path) -> None:
    """As indented JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _privacy_of(scenario: Scenario) -> Json:
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
            **dict.fromkeys((*nothing, "clip_norm", "accountant")),
            "unit": plan.privacy.unit,
            "noise_seeded": False,
        }
    standings = [scenario.standing(name) for name in scenario.world.shares]
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
        "noise_seeded": True,
        "noise_note": NOISE_NOTE,
        "accountant": f"PLD (dp-accounting {version('dp-accounting')}, grid {PLD_GRID:g})",
    }


def _node(scenario: Scenario, state: State, name: str) -> Json:
    standing = scenario.standing(name)
    failure = state.history[-1].failures.get(name) if state.history else None
    reason = state.excluded.get(name) or failure
    return {
        "name": name,
        "declared_size": len(scenario.world.shares[name].indices),
        "epsilon": float(standing.epsilon) if standing.epsilon is not None else None,
        "epsilon_executed": float(standing.epsilon_executed) if standing.epsilon_executed is not None else None,
        "state": "refused" if name in state.excluded else "failed" if failure else "finished",
        "reason": reason,
        "rounds_answered": standing.answered,
        "labels": scenario.world.labels_of(name),
    }


def _round(view: RoundView) -> Json:
    return {
        "round": view.round,
        "accuracy": view.scores.get("accuracy"),
        "loss": view.scores["loss"],
        "epsilon_executed": float(view.epsilon_executed) if view.epsilon_executed is not None else None,
        "answered": view.answered,
        "released": view.released or None,
    }


def _partition_terms(scenario: Scenario) -> Json:
    section = scenario.world.section
    terms = {"alpha": section.alpha, "shards_per_node": section.shards_per_node, "sizes": section.sizes}
    return {key: value for key, value in terms.items() if value is not None}
