"""The engine of a simulation: nodes that are trained together where the task's model allows it, else one by one.

Both give every node the same update up to rounding, with the same batches and the same noise. Policy, charges, kept
answers and ledgers are no matter of an engine: each node begins and finishes by itself (client/app.replies_together).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..client.answers import Answer
from ..client.app import Together
from ..client.node import Begun, Carried, Node
from ..client.randomness import drawn
from ..client.tasks.protocol import Partition, Records
from ..client.training import made_of
from ..privacy.parameters import Parameters, is_same
from ..privacy.submission import Submission
from .cohort.batches import Member
from .cohort.check import checked_model
from .cohort.evaluation import evaluate
from .cohort.model import CohortModel
from .cohort.trainer import CohortTrainer, nodes_at_once
from .cohort.unsupported import UnsupportedError
from .world import World

EngineName = Literal["auto", "cohort", "sequential"]
ENGINES: tuple[EngineName, ...] = ("auto", "cohort", "sequential")

log = logging.getLogger("privet.node")


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """What trains, and why; `model`: the cohort's, None where nodes are trained one by one."""

    name: Literal["cohort", "sequential"]
    why: str
    model: CohortModel | None = None
    at_once: int = 1

    @classmethod
    def chosen(cls, asked: EngineName, world: World, submission: Submission, device: torch.device) -> "Engine":
        """What was asked for; by itself the faster one that can train the model. Raises UnsupportedError."""
        if asked == "sequential":
            return cls("sequential", "as asked")
        try:
            model = checked_model(world.task, submission.plan, device)
        except UnsupportedError as error:
            if asked == "cohort":
                raise
            return cls("sequential", error.layer.partition("\n")[0])
        at_once = min(nodes_at_once(model.size, device), len(world.shares))
        if asked == "auto" and at_once == 1 and submission.claim is None:
            return cls("sequential", "one node at once is as fast")  # what is gained beside is the clipping
        return cls("cohort", f"{at_once} node{'s' if at_once > 1 else ''} at once", model, at_once)


class CohortWork:
    """Carries out what nodes have begun, all in one batch: see client.app.Together."""

    def __init__(self, model: CohortModel, submission: Submission, world: World) -> None:
        self._model = model
        self._submission = submission
        self._world = world
        self._trainer = CohortTrainer(model, submission)
        self._made_of = made_of(world.task)
        self._shared: Records | None = None  # the world's, on the device
        self._held: dict[str, tuple[Records, torch.Tensor | None, int]] = {}

    def __call__(self, begun: Sequence[tuple[Node, Begun]]) -> list[Carried] | None:
        """What each gave; None where they were not asked the same, or the task failed: alone, some may not fail."""
        first = begun[0][1]
        if not all(_is_alike(part, first) for _, part in begun) or first.submission.hash != self._submission.hash:
            return None
        try:
            members = [self._member(node, part) for node, part in begun]
            return self._carried(first.request.stage == "evaluate", first.request.parameters, members)
        except Exception:
            log.exception("the task failed for %s together", ", ".join(node.name for node, _ in begun))
            return None

    def _carried(self, is_evaluated: bool, parameters: Parameters, members: Sequence[Member]) -> list[Carried]:
        if is_evaluated:
            evaluated = evaluate(self._model, parameters, members)
            return [Carried(Answer(sums=one.sums), {**one.done, **self._made_of}) for one in evaluated]
        update = self._trainer.train_together(parameters, members)
        done = {**update.done, **self._made_of}
        return [Carried(Answer(parameters=update.of(place)), done) for place in range(len(members))]

    def _member(self, node: Node, begun: Begun) -> Member:
        """A node's records are loaded when it has begun for the first time, and not before."""
        if node.name not in self._held:
            self._held[node.name] = (*self._loaded(self._world.shares[node.name]), node.dataset.declared_size)
        records, indices, declared_size = self._held[node.name]
        return Member(records, declared_size, drawn(begun.draw), indices)

    def _loaded(self, share: Partition) -> tuple[Records, torch.Tensor | None]:
        """The world's own records with the share's places in them; or what the task makes of the share."""
        loaded, plain = self._world.task.load(share), share.load()
        if not (torch.equal(loaded.inputs, plain.inputs) and torch.equal(loaded.targets, plain.targets)):
            return loaded.to(self._model.device), None
        if self._shared is None:
            self._shared = share.records.to(self._model.device)
        return self._shared, share.indices


def together_by(engine: Engine, submission: Submission, world: World) -> Together | None:
    """What carries out together; None where nodes are trained one by one."""
    return CohortWork(engine.model, submission, world) if engine.model is not None else None


def _is_alike(one: Begun, other: Begun) -> bool:
    same = one.request.stage == other.request.stage and one.submission.hash == other.submission.hash
    return same and is_same(one.request.parameters, other.request.parameters)
