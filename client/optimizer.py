"""The optimiser that a plan names, over whatever tensors are trained: a model's parameters, or a cohort's in one.

The arithmetic is torch's own, by its functional interface. The classes around it import torch's compiler when they are
first used, which takes seconds and which nothing here needs.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ..privacy.plan import TrainingSection

# torch.optim.Adam's defaults.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Optimizer(Protocol):
    """Moves what it was made for by its gradients, `grad`."""

    def step(self) -> None:
        """One step."""
        ...


def is_plain(training: TrainingSection) -> bool:
    """Whether a step is the gradient times minus the learning rate, and nothing else."""
    return training.optimizer == "sgd" and not training.momentum and not training.weight_decay


def optimizer_of(training: TrainingSection, parameters: Sequence[Tensor]) -> Optimizer:
    """A new one, without a memory. All work value by value, so that stacked parameters are trained as separate ones."""
    return _Adam(training, parameters) if training.optimizer == "adam" else _Sgd(training, parameters)


class _Sgd:
    def __init__(self, training: TrainingSection, parameters: Sequence[Tensor]) -> None:
        self._training = training
        self._parameters = list(parameters)
        self._momenta: list[Tensor | None] = [None] * len(self._parameters)

    @torch.no_grad()
    def step(self) -> None:
        sgd(
            self._parameters,
            _gradients(self._parameters),
            self._momenta,
            weight_decay=self._training.weight_decay,
            momentum=self._training.momentum,
            lr=self._training.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class _Adam:
    def __init__(self, training: TrainingSection, parameters: Sequence[Tensor]) -> None:
        self._training = training
        self._parameters = list(parameters)
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.zeros((), dtype=torch.float32) for _ in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        adam(
            self._parameters,
            _gradients(self._parameters),
            self._means,
            self._squares,
            [],
            self._steps,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=self._training.learning_rate,
            weight_decay=self._training.weight_decay,
            eps=_EPSILON,
            maximize=False,
        )


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = [parameter.grad for parameter in parameters]
    if any(gradient is None for gradient in gradients):
        raise ValueError("a step without gradients")
    return [gradient for gradient in gradients if gradient is not None]
