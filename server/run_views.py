"""What is shown of a run: JSON whose keys docs/runs.md lists. An epsilon never stands without delta, unit and relation.

`charged` is what a node's ledger is charged when it admits the run: the claim, enforced. `executed` is what was carried
out so far, by PLD, as if the schedule was fixed in advance and every attempt asked for had begun.
"""

from typing import Any

from ..privacy.budget.charge import executed_epsilon
from ..privacy.budget.events import RELATION
from ..privacy.plan_app import AppSubmission, submission_of
from ..privacy.submission import Submission
from .run_book import RunBook
from .run_record import RunEvent, RunRecord, RunState

View = dict[str, Any]


def line_of(record: RunRecord) -> View:
    """A run in a list."""
    error = record.error
    return {
        "run_id": record.run_id,
        "name": record.name,
        "kind": record.kind,
        "operator": record.operator,
        "project": record.project,
        "state": record.state.value,
        "round": record.round,
        "rounds": record.rounds,
        "created": record.created,
        "started": record.started,
        "ended": record.ended,
        "error": {"code": error.code, "text": error.text, "try": error.remedy} if error else None,
        "has_model": "model" in record.standing,
    }


def page_of(book: RunBook, record: RunRecord) -> View:
    """All of a run. The first time after a round it takes an accountant some 50 ms: never call it in a round."""
    submission = submission_of(book.signed(record.run_id).submission)
    standing = record.standing
    sent, received = standing.get("traffic", (0, 0))
    page = line_of(record) | {
        "submission_hash": submission.hash,
        "valid_until": submission.body.expires,
        "members": standing.get("members", []),
        "refused": standing.get("refused", {}),
        "not_asked": standing.get("not_asked", {}),
        "waits_for": standing.get("waits_for", {}) if record.state is RunState.WAITING else {},
        "excluded": standing.get("excluded", {}),
        "participations": standing.get("participations", {}),
        "metrics": standing.get("metrics", {}),
        "traffic": {"sent": sent, "received": received},
        "model": standing.get("model"),
        "events": record.events,
    }
    if isinstance(submission, AppSubmission):
        return page | {"app": submission.plan.app.name, "claim": None, "epsilon": None}
    run = submission.plan.run
    told = {"task": run.task, "dataset": run.dataset, "claim": claim_view(submission)}
    return page | told | {"epsilon": _epsilon_view(submission, record)}


def event_view(event: RunEvent) -> View:
    """An event of a run."""
    return {"number": event.number, "time": event.time, "kind": event.kind, "body": event.body}


def claim_view(submission: Submission) -> View | None:
    """What the submission promises about every node that takes part; None where it makes no claim."""
    privacy, claim = submission.plan.privacy, submission.claim
    if claim is None:
        return None
    return {
        "epsilon": claim.epsilon,
        "delta": privacy.delta,
        "unit": privacy.unit,
        "relation": RELATION,
        "mechanism": privacy.mechanism,
        "noise_multiplier": claim.noise_multiplier,
    }


def _epsilon_view(submission: Submission, record: RunRecord) -> View | None:
    """Charged and executed, node by node."""
    plan, claim = submission.plan, submission.claim
    if claim is None:
        return None
    participations = record.standing.get("participations", {})
    has_evaluated = plan.evaluation is not None and record.round >= plan.evaluation.every
    took_part = [name for name in record.standing.get("members", []) if has_evaluated]
    executed = {
        name: executed_epsilon(plan, claim.noise_multiplier, participations.get(name, 0), record.round)
        for name in sorted({*participations, *took_part})
    }
    return {
        "charged": dict.fromkeys(executed, claim.epsilon),
        "executed": {name: float(epsilon) for name, epsilon in executed.items() if epsilon is not None},
        "delta": plan.privacy.delta,
        "unit": plan.privacy.unit,
        "relation": RELATION,
    }
