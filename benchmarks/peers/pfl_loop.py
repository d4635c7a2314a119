"""pfl: its simulated backend and federated averaging, in as many processes as its environment variables say.

What makes it fast, by its own guide to fast simulations: users as its `Dataset` in memory (which keeps the slices of
its batches, so each is made once here and handed out again; it does not shuffle), no evaluation, no metrics printed,
several processes by torch.distributed. No postprocessor but the one that weighs users alike.
"""

import time

import numpy as np
import torch
from contender import answer, asked
from models import BATCH, NODES, SEED, initial, node_records, test_loss
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional


class Module(nn.Module):
    """The model with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.network(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(inputs, targets).detach()) * len(targets), len(targets))}


class Clock(TrainingProcessCallback):
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.moments = [time.perf_counter()]

    def after_central_iteration(self, *given: object, **more: object) -> tuple[bool, Metrics]:
        self.moments.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    given = asked()
    np.random.seed(SEED)  # alike in all processes: it decides who is asked
    users = {str(n): Dataset(list(share), user_id=str(n)) for n, share in enumerate(node_records())}
    training = FederatedDataset(users.__getitem__, get_user_sampler("random", list(users)))
    module = Module(initial(given.model))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=given.rounds + 1,  # so in the first round only, which is warm-up
            train_cohort_size=given.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=training, val_data=training, postprocessors=[WeightByUser()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=given.learning_rate, local_batch_size=BATCH
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    assert len(users) == NODES
    answer(clock.moments, test_loss(module.network))


if __name__ == "__main__":
    main()
