"""Pristine: a model as it began, apart from what is trained; put back before each node that it trains.

One model trains many nodes, one after the other. Whatever it kept of one node's records (a running mean, a cache, a
frozen layer that was moved) would reach the next node's update, and no clipping of that update would undo it. So
buffers, frozen parameters and the modules' own attributes are put back. What a task keeps outside its model is not.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Where a module holds its parts: put back part by part, the very same ones.
_PARTS = ("_parameters", "_buffers", "_modules")


class Pristine:
    """What a model had when this was made; and the attributes of those of its modules that `with_attributes` names.

    Not of modules into which somebody must write: Opacus does, and the cohort engine's layers do.
    """

    def __init__(self, model: nn.Module, *, with_attributes: Callable[[nn.Module], bool]) -> None:
        modules = list(model.modules())
        self._parts = [(vars(module)[part], dict(vars(module)[part])) for module in modules for part in _PARTS]
        self._values = [(tensor, tensor.detach().clone()) for tensor in _untrained(model)]
        self._same = {id(one): one for one in (*modules, *model.parameters(), *model.buffers())}
        kept = [module for module in modules if with_attributes(module)]
        self._attributes = [(module, self._copied(_attributes(module))) for module in kept]

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        for module, began in self._attributes:
            own = vars(module)
            for name in set(own) - set(began) - set(_PARTS):
                del own[name]
            own.update(self._copied(began))
        for parts, first in self._parts:
            parts.clear()
            parts.update(first)
        for tensor, first_value in self._values:
            tensor.copy_(first_value)

    def _copied(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Of lists and tensors that a module holds; modules and parameters in them stay the same ones."""
        copied: dict[str, Any] = copy.deepcopy(attributes, dict(self._same))
        return copied


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _PARTS}


def _untrained(model: nn.Module) -> Iterator[Tensor]:
    yield from (parameter for parameter in model.parameters() if not parameter.requires_grad)
    yield from model.buffers()
