"""Clipping: the constants and the arithmetic by which a record's gradient is clipped, whoever computes it.

One place, so that a node and the simulation's cohort engine clip alike. Knows torch, not Opacus.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["plain", "hooks", "ghost"]

# Above this many parameters hooks wait for memory (measured: 70x for 670,000, where ghost took 2.3x).
GHOST_PARAMETERS = 200_000
# Values of per-record gradients held at once, and records in one forward pass: both bound memory.
HELD_VALUES = 2**25
HELD_RECORDS = 4096
# A norm is taken this much larger, relatively and absolutely, than it was measured, so that rounding does not let a
# clipped gradient exceed C. Opacus adds the absolute part.
NORM_GUARD = 1e-6
# Exponents of the power of two by which weights are scaled while a sum is taken.
_MIDDLE, _LARGEST_SCALE = 64, 100


def mode_of(model: nn.Module) -> Mode:
    """How the clipped sum of this model is best computed."""
    trained = [module for module in model.modules() if own_parameters(module)]
    ghostly = all(isinstance(module, nn.Linear | nn.Embedding) for module in trained)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return "ghost" if ghostly or count > GHOST_PARAMETERS else "hooks"


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The module's trainable parameters, without those of modules inside it."""
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]


def scale_of(clip_norm: float) -> float:
    """The power of two that brings a clip norm to about 2^64: far from where float32 ends, above and below."""
    return 2.0 ** min(max(_MIDDLE - math.frexp(clip_norm)[1], -_MIDDLE), _LARGEST_SCALE)


def clip_weights(norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, C / norm) for each norm, times `scale_of(clip_norm)`: a tiny weight would lose its digits, and its record
    exceed C by them. Computed in float64, given in the type of `norms`.

    >>> clip_weights(torch.tensor([0.5, 2.0]), 1.0) / scale_of(1.0)
    tensor([1.0000, 0.5000])
    """
    weights = (clip_norm / (norms.double() * (1 + NORM_GUARD) + NORM_GUARD)).clamp(max=1.0)
    return (weights * scale_of(clip_norm)).to(norms.dtype)


def sum_rounding(lengths: Tensor) -> Tensor:
    """What rounding can add to a sum over a sequence in float32, [...], of the lengths [..., T] of its terms."""
    return lengths.sum(dim=-1) * lengths.shape[-1] * torch.finfo(torch.float32).eps
