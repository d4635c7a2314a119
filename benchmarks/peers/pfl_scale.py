"""pfl with the noise at the server: a cohort of a thousand of ten thousand users, one process. See scale.py."""

import itertools
import json
import resource
import statistics
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from pfl_loop import Module
from torch import nn


class Clock(TrainingProcessCallback):
    """Notes when rounds end, on the clock of this process's own work."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def after_central_iteration(self, *given: object, **more: object) -> tuple[bool, Metrics]:
        self.moments.append(time.process_time())
        return False, Metrics()


def main() -> None:
    shape = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    np.random.seed(1)
    count = shape["nodes"] * shape["records"]
    inputs, targets = torch.randn(count, shape["features"]), torch.randint(shape["classes"], (count,))
    users = {
        str(n): Dataset([inputs[n :: shape["nodes"]], targets[n :: shape["nodes"]]], user_id=str(n))
        for n in range(shape["nodes"])
    }
    training = FederatedDataset(users.__getitem__, get_user_sampler("random", list(users)))
    hidden = nn.Linear(shape["features"], shape["hidden"])
    module = Module(nn.Sequential(hidden, nn.ReLU(), nn.Linear(shape["hidden"], shape["classes"])))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    noise = CentrallyAppliedPrivacyMechanism(GaussianMechanism(clipping_bound=1.0, relative_noise_stddev=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=shape["rounds"],
            evaluation_frequency=shape["rounds"] + 1,
            train_cohort_size=shape["cohort"],
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=training, val_data=training, postprocessors=[WeightByUser(), noise]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=0.1, local_batch_size=shape["records"] // shape["steps"]
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    times = [1e3 * (after - before) for before, after in itertools.pairwise(clock.moments)]  # the first is warm-up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": statistics.median(times), "peak_mb": peak}))


if __name__ == "__main__":
    main()
