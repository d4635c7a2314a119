"""The Flower ServerApp: translation only. What a run does stands in federation.py.

`flwr run` names a plan and a folder. A run that was begun in that folder goes on where it stood; an error fails it.
"""

import json
import logging
import threading
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..privacy.budget.events import RELATION
from ..privacy.errors import CheckpointError, FederationError, PrivetError
from ..privacy.plan import Plan
from ..privacy.plan_file import read_plan
from ..privacy.submission import Submission
from .checkpoints import State
from .federation import Federation
from .run_config import RunConfig
from .run_folder import RunFolder
from .simulated import simulated_submission
from .strategies import check_deployable
from .witnesses import witnesses_in

OUTCOME = "outcome.json"
OUTCOME_FORMAT = 1
# Stock Flower registers a simulation's nodes one by one, within milliseconds, while the ServerApp already runs.
NODES_SECONDS = 30.0
_SETTLED_SECONDS = 0.25
_LOOK_SECONDS = 0.05

# A child of Flower's own logger: `flwr run --stream` and `flwr log` show what it says.
log = logging.getLogger("flwr.privet")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the plan that the run config names. What it raises, Flower reports as a failed run."""
    try:
        config = RunConfig.of(context.run_config)
        folder = RunFolder(config.out)
        plan = read_plan(config.plan)
        check_deployable(plan)
        wait_for_nodes(grid, plan.aggregation.min_nodes)  # before anything is written
        submission = _begun_or_resumed(plan, folder)
        checkpoints = folder.checkpoints(submission)
        witnesses = witnesses_in(folder.root / "ledgers", submission.plan.run.rounds)
        state = Federation(submission, grid, checkpoints, _log_round, witnesses, config.request_seconds).run()
        folder.write_model(submission, state)
        _write_outcome(folder, submission, state)
    except PrivetError as error:
        log.error("error: %s", error.message)
        log.error("try: %s", error.remedy)
        raise


def wait_for_nodes(grid: Grid, least: int, patience: float = NODES_SECONDS) -> None:
    """Return when `least` nodes are there and no other has come for a moment; raise FederationError after `patience`.

    `patience`: seconds. Without the moment, a run would begin with whatever part of the nodes Flower had registered.
    """
    pause, began = threading.Event(), time.monotonic()
    count, since = 0, began
    while (count < least or time.monotonic() - since < _SETTLED_SECONDS) and time.monotonic() - began < patience:
        pause.wait(_LOOK_SECONDS)
        found = len(list(grid.get_node_ids()))
        if found != count:
            count, since = found, time.monotonic()
    if count < least:
        raise FederationError(
            f"{count} nodes after {patience:g} s, the plan needs {least}",
            "raise num-supernodes in --federation-config, or lower aggregation.min-nodes",
        )


def _begun_or_resumed(plan: Plan, folder: RunFolder) -> Submission:
    if not folder.submission.exists():
        submission = simulated_submission(plan)
        folder.begin(plan, submission)
        return submission
    begun, submission = folder.read()
    if begun != plan:
        raise CheckpointError(
            f"{folder.root}: a run of another plan was begun here",
            f"give another folder, or the plan that it was begun with: {folder.plan}",
        )
    return submission


def _log_round(state: State) -> None:
    if state.history:
        report = state.history[-1]
        log.info("round %d: %d nodes answered, %d failed", state.round, report.answered, len(report.failures))


def _write_outcome(folder: RunFolder, submission: Submission, state: State) -> None:
    path = folder.root / OUTCOME
    try:
        path.write_text(json.dumps(outcome_of(submission, state), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}", "free space, then run again") from None


def outcome_of(submission: Submission, state: State) -> dict[str, object]:
    """What a finished run says of itself. `claim`: what each node enforced, None where the plan's unit is none."""
    privacy, claim = submission.plan.privacy, submission.claim
    return {
        "format": OUTCOME_FORMAT,
        "run_id": submission.run_id,
        "submission_hash": submission.hash,
        "claim": {
            "epsilon": claim.epsilon,
            "delta": privacy.delta,
            "unit": privacy.unit,
            "relation": RELATION,
            "mechanism": privacy.mechanism,
            "noise_multiplier": claim.noise_multiplier,
        }
        if claim
        else None,
        "rounds": state.round,
        "excluded": state.excluded,
        "history": [
            {"round": r.round, "answered": r.answered, "failures": r.failures, "released": r.metrics}
            for r in state.history
        ],
    }
