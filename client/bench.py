"""Bench: where one process trains. A run's model is built and probed once, for all data sets that it is trained on."""

import torch

from ..privacy.budget.book import DeclaredDataset
from ..privacy.parameters import Array, Parameters
from ..privacy.submission import Submission
from .draw import Draw
from .probe import probe
from .randomness import drawn
from .tasks.protocol import Source, Task
from .training import LocalTrainer, TrainableModel


class Bench:
    """A task on a device, and the models of the runs that train it."""

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

    def trainer(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> "BenchTrainer":
        """See node.Workshop."""
        return BenchTrainer(LocalTrainer(self.trainable(submission), submission, source, dataset.declared_size))


class BenchTrainer:
    """See node.Trainer: a LocalTrainer that draws from what a Draw names."""

    def __init__(self, local: LocalTrainer) -> None:
        self._local = local

    def initial(self) -> dict[str, Array]:
        """See node.Trainer."""
        return self._local.initial()

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        """See node.Trainer."""
        return self._local.train(parameters, drawn(draw))

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        """See node.Trainer."""
        return self._local.evaluate(parameters, drawn(draw))

    def done(self) -> dict[str, str]:
        """See node.Trainer."""
        return self._local.done()
