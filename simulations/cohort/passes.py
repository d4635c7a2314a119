"""A pass: the losses of a batch, and the loss's derivatives by what each trained layer gave.

A chain is passed by hand (tape.py), a model with a forward of its own by torch. Either way the derivatives of a record
that only fills a batch are zero from the start.

In bfloat16 a pass multiplies in half the bits: torch's autocast chooses where. Parameters, losses, and all that is made
of a pass afterwards stay float32: norms, clipping, sums, noise. What a record adds is bounded as before, since it is
clipped as it was computed; so a claim is the same.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from ...privacy.errors import TaskError
from .batches import Batch
from .chain import Chain
from .model import CohortModel
from .tape import Found, Tape
from .unsupported import UnsupportedError

Precision = Literal["float32", "bfloat16"]


def passed(model: CohortModel, batch: Batch, precision: Precision = "float32") -> tuple[Tensor, Found]:
    """Losses [B, N], and the derivatives of their sum."""
    losses, found = (_by_torch if model.first_trained is None else _by_hand)(model, batch, precision)
    return losses.view(batch.real.shape), [(layer, backprops.float()) for layer, backprops in found]


def _by_hand(model: CohortModel, batch: Batch, precision: Precision) -> tuple[Tensor, Found]:
    assert isinstance(model.stacked, Chain)
    assert model.first_trained is not None
    tape = Tape(list(model.stacked.stages), model.first_trained, nodes=batch.real.shape[1])
    with torch.no_grad(), _multiplying(model, precision):
        outputs = tape.forward(batch.inputs.flatten(0, 1))
    outputs = outputs.detach().float().requires_grad_()
    losses = _losses(model, outputs, batch)
    derivatives = torch.autograd.grad(_summed(losses, batch), [outputs], allow_unused=True)[0]
    with torch.no_grad(), _multiplying(model, precision):
        return losses.detach(), [] if derivatives is None else tape.back(derivatives)


def _by_torch(model: CohortModel, batch: Batch, precision: Precision) -> tuple[Tensor, Found]:
    with _multiplying(model, precision):
        outputs = model.stacked(batch.inputs.flatten(0, 1))
    losses = _losses(model, outputs.float(), batch)
    layers = [layer for layer in model.layers if layer.output is not None]
    if any(layer.is_overwritten for layer in layers):
        raise UnsupportedError("the model's forward: it overwrites what a layer gave")
    gave = [layer.output for layer in layers if layer.output is not None]
    backprops = torch.autograd.grad(_summed(losses, batch), gave, allow_unused=True)
    return losses.detach(), [(layer, part) for layer, part in zip(layers, backprops, strict=True) if part is not None]


def _multiplying(model: CohortModel, precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast(model.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _losses(model: CohortModel, outputs: Tensor, batch: Batch) -> Tensor:
    losses = model.task.loss(outputs, batch.targets.flatten(0, 1))
    if losses.shape != (batch.real.numel(),):
        raise TaskError(f"the loss of {batch.real.numel()} records has shape {list(losses.shape)}", "mend the loss")
    return losses


def _summed(losses: Tensor, batch: Batch) -> Tensor:
    """What to differentiate: a product, since torch imports sympy where it is told `grad_outputs`."""
    return torch.dot(losses, batch.real.flatten().to(losses.dtype))
