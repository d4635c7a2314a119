"""Bench: where one process trains. A run's model is built and probed once, for all data sets that it is trained on."""

from collections.abc import Callable

import torch

from ..privacy.budget.book import DeclaredDataset
from ..privacy.parameters import Array, Parameters
from ..privacy.submission import Submission
from .draw import Draw
from .probe import probe, probe_gradients
from .randomness import drawn
from .tasks.protocol import Source, Task
from .training import LocalTrainer, TrainableModel


class Bench:
    """A task on a device, and the models of the runs that train it."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._device = device
        self._models: dict[str, TrainableModel] = {}
        self._without_gradients: set[str] = set()  # models whose gradients were not yet probed

    def trainable(self, submission: Submission, *, with_gradients: bool = True) -> TrainableModel:
        """The submission's model; raise TaskError when it is unfit to be trained privately.

        Without gradients it is fit to be evaluated, and to be trained by something that tries its own.
        """
        if submission.hash not in self._models:
            probe(self._task, submission.plan, with_gradients=with_gradients)
            self._models[submission.hash] = TrainableModel(self._task, submission.plan, self._device)
            self._without_gradients |= set() if with_gradients else {submission.hash}
        if with_gradients and submission.hash in self._without_gradients:
            probe_gradients(self._task, submission.plan)
            self._without_gradients.remove(submission.hash)
        return self._models[submission.hash]

    def trainer(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> "BenchTrainer":
        """See node.Workshop."""
        return BenchTrainer(LocalTrainer(self.trainable(submission), submission, source, dataset.declared_size))

    def reserve(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> "BenchTrainer":
        """A trainer that is only asked to train where what trains many nodes together fails: probed in full then."""
        trainable = self.trainable(submission, with_gradients=False)
        local = LocalTrainer(trainable, submission, source, dataset.declared_size)
        return BenchTrainer(local, lambda: self.trainable(submission))


class BenchTrainer:
    """See node.Trainer: a LocalTrainer that draws from what a Draw names. `ready`: what comes before it trains."""

    def __init__(self, local: LocalTrainer, ready: Callable[[], object] = lambda: None) -> None:
        self._local = local
        self._ready = ready

    def initial(self) -> dict[str, Array]:
        """See node.Trainer."""
        return self._local.initial()

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        """See node.Trainer."""
        self._ready()
        return self._local.train(parameters, drawn(draw))

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        """See node.Trainer."""
        return self._local.evaluate(parameters, drawn(draw))

    def done(self) -> dict[str, str]:
        """See node.Trainer."""
        return self._local.done()
