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

from .batches import Batch
from .chain import Chain
from .losses import checked
from .model import CohortModel
from .tape import Found, Tape
from .unsupported import UnsupportedError

Precision = Literal["float32", "bfloat16"]


def passed(model: CohortModel, batch: Batch, precision: Precision = "float32") -> tuple[Tensor, Found]:
    """Losses [B, N], and the derivatives of their sum."""
    losses, found = (_by_torch if model.first_trained is None else _by_hand)(model, batch, precision)
    return losses, [(layer, backprops.float()) for layer, backprops in found]


def _by_hand(model: CohortModel, batch: Batch, precision: Precision) -> tuple[Tensor, Found]:
    assert isinstance(model.stacked, Chain)
    assert model.first_trained is not None
    by_record = model.plan.privacy.record_clip_norm is not None
    tape = Tape(list(model.stacked.stages), model.first_trained, batch.shares != 0, by_record=by_record)
    with torch.no_grad():
        with _multiplying(model, precision):
            outputs = tape.forward(batch.inputs)
        folded = outputs.flatten(0, 1) if tape.ends_by_node else outputs
        targets, shares = (_folded(tensor, tape.ends_by_node) for tensor in (batch.targets, batch.shares))
        losses, derivatives = model.losses(folded.float(), targets, shares)
        apart = losses.view(batch.shares.shape[1], -1).t() if tape.ends_by_node else losses.view(batch.shares.shape)
        with _multiplying(model, precision):
            return apart, [] if derivatives is None else tape.back(derivatives.view(outputs.shape))


def _folded(tensor: Tensor, by_node: bool) -> Tensor:
    """[B, N, ...] -> [B * N, ...], the records of a place side by side or those of a node."""
    return (tensor.transpose(0, 1) if by_node else tensor).flatten(0, 1)


def _by_torch(model: CohortModel, batch: Batch, precision: Precision) -> tuple[Tensor, Found]:
    with _multiplying(model, precision):
        outputs = model.stacked(batch.inputs.flatten(0, 1))
    losses = checked(model.task.loss(outputs.float(), batch.targets.flatten(0, 1)), batch.shares.numel())
    layers = [layer for layer in model.layers if layer.output is not None]
    if any(layer.is_overwritten for layer in layers):
        raise UnsupportedError("the model's forward: it overwrites what a layer gave")
    gave = [layer.output for layer in layers if layer.output is not None]
    summed = torch.dot(losses, batch.shares.flatten().to(losses.dtype))  # see losses.py
    backprops = torch.autograd.grad(summed, gave, allow_unused=True)
    found: Found = [(layer, part) for layer, part in zip(layers, backprops, strict=True) if part is not None]
    return losses.detach().view(batch.shares.shape), found


def _multiplying(model: CohortModel, precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast(model.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
