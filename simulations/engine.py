"""The engine of a simulation: nodes that are trained together where the task's model allows it, else one by one.

Both give every node the same update up to rounding, with the same batches and the same noise. Where whole nodes are
hidden, the cohort engine trains each node by itself too: in company rounding would depend on who else is asked.
Policy, charges, kept answers and ledgers are no matter of an engine: each node begins and finishes by itself
(client/app.begun_together).
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch

from ..privacy.errors import UsageError
from ..privacy.plan import Plan
from ..privacy.submission import Submission
from ..server.cohort import asked_of
from .cohort.check import checked_model
from .cohort.model import CohortModel
from .cohort.passes import Precision
from .cohort.trainer import nodes_at_once
from .cohort.unsupported import UnsupportedError
from .crew import can_fork
from .ray_installed import require_ray
from .world import World

EngineName = Literal["auto", "cohort", "sequential", "ray"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ENGINES: tuple[EngineName, ...] = ("auto", "cohort", "sequential", "ray")


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """What trains, and why; `model`: the cohort's, None where nodes are trained one by one.

    `at_once`: how many share a batch. `ordered`: how many are handed to a process at a time.
    """

    name: Literal["cohort", "sequential", "ray"]
    why: str
    model: CohortModel | None = None
    at_once: int = 1
    ordered: int = 1
    precision: Precision = "float32"

    @classmethod
    def chosen(
        cls,
        asked: EngineName,
        world: World,
        submission: Submission,
        device: torch.device,
        precision: Precision = "float32",
    ) -> "Engine":
        """What was asked for; by itself the faster one that can train the model.

        Raises UnsupportedError for a model that only others can train than was asked for, or in that precision.
        """
        if asked == "ray":
            require_ray()
        if asked in ("sequential", "ray"):
            if precision != "float32":
                raise UsageError(f"--precision {precision}: engine {asked} has float32 alone", "--engine cohort")
            return cls(asked, "as asked")
        try:
            model = checked_model(world.task, submission.plan, device)
        except UnsupportedError as error:
            if asked == "cohort" or precision != "float32":
                raise
            return cls("sequential", error.layer.partition("\n")[0])
        ordered = nodes_at_once(model.size, device, asked_of(submission.plan, len(world.shares)))
        # An update must not depend on who trains beside it where whole nodes are hidden: server/central.py, rule 2.
        at_once = 1 if submission.plan.privacy.is_central else ordered
        why = f"{at_once} node{'s' if at_once > 1 else ''} at once"
        why += "" if precision == "float32" else f", multiplied in {precision}"
        return cls("cohort", why, model, at_once, ordered, precision)


def processes_for(engine: Engine, plan: Plan, world: World, asked: int | None) -> int:
    """How many processes train: as many as asked for, by default one for each core; no more than find work in a round.

    One only, where processes cannot be forked or share what they train on: on a GPU, elsewhere than on Linux, and where
    torch may have begun threads, for which a forked process would wait for ever.
    """
    is_alone = torch.cuda.is_available() or torch.get_num_threads() > 1 or not can_fork()
    if engine.model is None or engine.model.device.type != "cpu" or is_alone:
        return 1
    cohort = math.ceil(len(world.shares) * plan.aggregation.fraction)
    return max(1, min(asked or len(os.sched_getaffinity(0)), -(-cohort // engine.ordered)))
