"""CohortModel: a task's model for N nodes at once, made from the task's own by putting stacked layers into it.

The model's own forward runs as it is, on the folded records [B * N, ...] of all nodes; only its trained layers are
others. That is right as long as the rest treats each record by itself, which `check.py` tries before a model is used.
What cannot be stacked is named: `UnsupportedError.layer`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...client.clipping import mode_of, own_parameters
from ...client.tasks.protocol import Task, resolved_options
from ...privacy.errors import TaskError
from ...privacy.parameters import Array, Parameters
from ...privacy.plan import Plan
from .chain import Chain
from .convolution import StackedConvolution
from .layers import StackedEmbedding, StackedGroupNorm, StackedLayerNorm, StackedLinear
from .losses import losses_of
from .stacked import StackedLayer
from .unsupported import UnsupportedError, described

Make = Callable[[Any, str, bool], StackedLayer]

_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a trained parameter stands among the values of a node, which follow one another in the model's order."""

    name: str
    shape: torch.Size
    start: int

    @property
    def end(self) -> int:
        """One past its last value."""
        return self.start + math.prod(self.shape)

    def of(self, stacked: Tensor) -> Tensor:
        """The parameter of all nodes, [N, *shape]: a view of [N, d]."""
        return stacked[:, self.start : self.end].view(len(stacked), *self.shape)


class CohortModel:
    """A task's model on a device, ready for one plan; raise UnsupportedError for a model that cannot be stacked.

    Not believed before `check.check` has tried it: `checked_model` does both.

    `plain` is the task's own model with its frozen parts from the plan's public seed, as TrainableModel has it.
    `stacked` computes outputs [B * N, ...] of records [B * N, ...]. `first_trained`: the place of its first trained
    stage where it is a chain that can be passed by hand (tape.py), None elsewhere. `losses`: see losses.py.
    """

    def __init__(self, task: Task, plan: Plan, device: torch.device) -> None:
        self.task = task
        self.plan = plan
        self.device = device
        self.options = resolved_options(task, plan.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.run.seed)
            self.plain = task.model(self.options).to(device)
        self.slots = tuple(_slots(self.plain))
        if not self.slots:
            raise TaskError(f"task {task.name!r} has a model without trainable parameters", "make some trainable")
        self.size = self.slots[-1].end
        _refuse(self.plain)
        stacked = _stacked(copy.deepcopy(self.plain), "", mode_of(self.plain) == "ghost")
        self.stacked = (Chain([stacked]) if isinstance(stacked, StackedLayer) else stacked).train()
        self.first_trained = self.stacked.first_trained if isinstance(self.stacked, Chain) else None
        self.begins_by_node = isinstance(self.stacked, Chain) and self.stacked.begins_by_node
        self.losses = losses_of(task)
        self.layers = [module for module in self.stacked.modules() if isinstance(module, StackedLayer)]
        self._chains = [module for module in self.stacked.modules() if isinstance(module, Chain)]
        slots = {slot.name: slot for slot in self.slots}
        self._slots_of = [{n: slots[f"{at.path}.{n}".lstrip(".")] for n in at.trained} for at in self.layers]
        self.initial: Parameters = self.split(_values_of(self.plain))

    def bind(self, values: Tensor, sums: Tensor) -> None:
        """Compute with these parameters, [N, d], and add gradients to these sums, [N, d]: views of both."""
        for layer, slots in zip(self.layers, self._slots_of, strict=True):
            of_values, of_sums = ({n: slot.of(stacked) for n, slot in slots.items()} for stacked in (values, sums))
            layer.bind(len(values), of_values, of_sums)
        for chain in self._chains:
            chain.bind(len(values))

    def clear_sums(self) -> None:
        """Begin the sums that are bound anew; they can be read after `settle_sums`."""
        for layer in self.layers:
            layer.clear()

    def settle_sums(self) -> None:
        """Make the sums whole: zeros for a layer that had no part in what was added."""
        for layer in self.layers:
            layer.settle()

    def buffers(self) -> Iterator[Tensor]:
        """Of the task's own model and of the stacked one."""
        yield from self.plain.buffers()
        yield from self.stacked.buffers()

    def forget(self) -> None:
        """Leave nothing of a batch behind."""
        for layer in self.layers:
            layer.forget()

    def joined(self, parameters: Parameters) -> Tensor:
        """A node's trainable parameters as one vector, [d] float32, on the device."""
        values = np.concatenate([parameters[slot.name].reshape(-1) for slot in self.slots], dtype=np.float32)  # a copy
        return torch.from_numpy(values).to(self.device)

    def views(self, values: Tensor) -> dict[str, Array]:
        """A vector [d] in this process's memory as named parameters, not copied."""
        array = values.detach().numpy()
        return {slot.name: array[slot.start : slot.end].reshape(slot.shape) for slot in self.slots}

    def split(self, values: Tensor) -> dict[str, Array]:
        """A vector [d] as named parameters, copied out."""
        array = values.detach().cpu().numpy()
        return {slot.name: array[slot.start : slot.end].reshape(slot.shape).copy() for slot in self.slots}

    def write_plain(self, values: Tensor) -> None:
        """Put a vector [d] into `plain`."""
        trained = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter, slot in zip(trained, self.slots, strict=True):
                parameter.copy_(values[slot.start : slot.end].view(slot.shape))


def _values_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])


def _slots(model: nn.Module) -> Iterator[Slot]:
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.dtype != torch.float32:
                raise UnsupportedError(f"parameters of type {parameter.dtype}")
            yield Slot(name, parameter.shape, start)
            start += parameter.numel()


def _refuse(model: nn.Module) -> None:
    """What cannot be seen in a single layer: parameters in two places, hooks, random numbers."""
    named = [p for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    if len(named) != len(set(named)):
        raise UnsupportedError("a parameter that is used in two places")
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedError(f"{described(module, path)} with hooks")
        if isinstance(module, _RANDOM) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0):
            raise UnsupportedError(f"{described(module, path)}, which draws random numbers")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedError(f"{described(module, path)}, which mixes records")


def _stacked(module: nn.Module, path: str, adds_rounding: bool) -> nn.Module:
    """The module with every trained layer in it stacked; changed in place where it only holds others."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return _not_in_place(module)
    if type(module) in _LAYERS:
        layer = _LAYERS[type(module)](module, path, adds_rounding)
        layer.path = path
        return layer
    if own_parameters(module):
        raise UnsupportedError(described(module, path))
    inner = {n: _stacked(m, f"{path}.{n}".lstrip("."), adds_rounding) for n, m in module.named_children()}
    if type(module).forward is nn.Sequential.forward:
        flat = [list(part.stages) if isinstance(part, Chain) else [part] for part in inner.values()]
        return Chain([stage for stages in flat for stage in stages])
    for name, part in inner.items():
        setattr(module, name, part)
    return module


def _not_in_place(module: nn.Module) -> nn.Module:
    """Nothing may overwrite what a stacked layer gave, since its gradient is taken there."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    return module


_LAYERS: dict[type[nn.Module], Make] = {
    nn.Linear: lambda layer, path, adds_rounding: StackedLinear(layer, adds_rounding),
    nn.Embedding: lambda layer, path, adds_rounding: StackedEmbedding(layer, path),
    nn.LayerNorm: lambda layer, path, adds_rounding: StackedLayerNorm(layer),
    nn.GroupNorm: lambda layer, path, adds_rounding: StackedGroupNorm(layer),
    nn.Conv1d: lambda layer, path, adds_rounding: StackedConvolution(layer),
    nn.Conv2d: lambda layer, path, adds_rounding: StackedConvolution(layer),
}
