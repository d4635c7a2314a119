"""The optimiser that a plan names, over whatever tensors are trained: a model's parameters, or a cohort's in one."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..privacy.plan import TrainingSection


def optimizer_of(training: TrainingSection, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """A new one, without a memory. All work value by value, so that stacked parameters are trained as separate ones."""
    trained = list(parameters)
    if training.optimizer == "adam":
        return torch.optim.Adam(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        trained, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
