"""Models that leave each record's gradient, or its norm, on their parameters, by Opacus: the module that imports it.

Loaded only where a private plan's gradients are taken: it costs as much time as torch.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from .clipping import HELD_VALUES, sum_rounding


def hooked(model: nn.Module) -> Any:
    """The model with Opacus' hooks: after a backward pass each parameter holds the gradient of every record."""
    return GradSampleModule(model, loss_reduction="sum", strict=False)


def ghost_wrapped(model: nn.Module, clip_norm: float | None) -> Any:
    """The model with hooks that leave norms alone: see GradientSum."""
    return _Ghost(model, loss_reduction="sum", strict=False, max_grad_norm=clip_norm, use_ghost_clipping=True)


class _Ghost(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' ghost clipping with another norm for linear layers.

    Opacus multiplies sums of squares in float32. They underflow, and over a sequence they cancel: a record of norm 500
    was seen to be measured as 0 and added whole.
    """

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = dict(GradSampleModuleFastGradientClipping.NORM_SAMPLERS)


def _linear_norms(layer: nn.Linear, activations: Sequence[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """The norm of each record's gradient, [B] float64: of a product of two vectors, or, over a sequence, of the sum."""
    inputs = activations[0].to(backprops.dtype)
    if backprops.dim() > 3:
        backprops, inputs = backprops.flatten(1, -2), inputs.flatten(1, -2)  # [B, T, .]
    norms: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        norms[layer.weight] = _product_norms(backprops, inputs)
    if layer.bias is not None and layer.bias.requires_grad:
        is_sequence = backprops.dim() > 2
        norms[layer.bias] = (
            _norms(backprops.sum(dim=1)) + sum_rounding(_norms(backprops)) if is_sequence else _norms(backprops)
        )
    return norms


def _product_norms(backprops: Tensor, inputs: Tensor) -> Tensor:
    lengths = _norms(backprops) * _norms(inputs)
    if backprops.dim() == 2:
        return lengths
    at_once = max(1, HELD_VALUES // (inputs.shape[-1] * backprops.shape[-1]))
    parts = zip(torch.split(backprops, at_once), torch.split(inputs, at_once), strict=True)
    summed = torch.cat([_norms(torch.einsum("nti,ntj->nij", b, a).flatten(1)) for b, a in parts])
    return summed + sum_rounding(lengths)


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return norms


_Ghost.NORM_SAMPLERS[nn.Linear] = _linear_norms
