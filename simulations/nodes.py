"""Simulated nodes: the very Node of a deployment, with a simulation's ledger and seeded noise."""

from pathlib import Path

import torch

from ..client.answers import Answers
from ..client.node import Dataset, Node, public_randomness
from ..client.probe import probe
from ..client.randomness import Randomness, SeededRandomness
from ..client.tasks.protocol import Task
from ..client.training import LocalTrainer, TrainableModel
from ..privacy.budget.guard import Attempt, Guard
from ..privacy.budget.ledger import Ledger
from ..privacy.submission import Submission
from .world import World


class Bench:
    """Where all nodes of one process train, one after the other: the model is built and probed once for all of them."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._device = device
        self._models: dict[str, TrainableModel] = {}

    def trainable(self, submission: Submission) -> TrainableModel:
        """The submission's model; raise TaskError when it is unfit to be trained privately."""
        if submission.hash not in self._models:
            probe(self._task, submission.plan)
            self._models[submission.hash] = TrainableModel(self._task, submission.plan, self._device)
        return self._models[submission.hash]

    def trainer(self, submission: Submission, dataset: Dataset) -> LocalTrainer:
        """See node.Workshop."""
        return LocalTrainer(self.trainable(submission), submission, dataset.source, dataset.declared_size)


def simulated_node(world: World, name: str, dataset: str, folder: Path, bench: Bench) -> Node:
    """The node of one share, which declares its true size. Its ledger and kept answers lie in `folder`."""
    share = world.shares[name]
    size = len(share.indices)
    ledger = Ledger.open(folder / "ledgers" / f"{name}.sqlite", purpose="simulation", owner=name)
    return Node(
        name=name,
        dataset=Dataset(dataset, world.task.name, share, size),
        guard=Guard(ledger, size),
        answers=Answers(folder / "answers" / name),
        workshop=bench.trainer,
        randomness=lambda submission, attempt: simulated_randomness(submission, attempt, name),
    )


def simulated_randomness(submission: Submission, attempt: Attempt, name: str) -> Randomness:
    """Reproducible from the plan's seed, other for every node, stage, round and attempt. Protects nobody."""
    if submission.claim is None:
        return public_randomness(submission, attempt, name)
    seed = submission.plan.run.seed
    return SeededRandomness(seed, "simulated-noise", name, attempt.stage, attempt.round, attempt.number)
