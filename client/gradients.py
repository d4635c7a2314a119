"""The sum of per-record gradients, each clipped to an L2 norm: the only module that imports Opacus.

The rule (Abadi et al. 2016, algorithm 1): g_i = gradient of record i's loss over all trainable parameters together;
the sum is over g_i * min(1, C / ||g_i||). So one record adds at most C to it, whatever the record.

Two ways to the same sum, both checked against a record-by-record computation:
- hooks: every g_i stands in memory, B times the model. Good for convolutions and small models.
- ghost: only the norms, then a second backward pass of the weighted loss (Goodfellow 2015; Li et al. 2022). Good for
  linear and large models, which hooks would make wait for memory.

A record whose gradient is not finite is taken out before anything is summed: with weight zero it would still be there,
since 0 * inf is NaN. How many were taken out is known to the node alone.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from .tasks.protocol import Records

Mode = Literal["plain", "hooks", "ghost"]
Loss = Callable[[Tensor, Tensor], Tensor]

# Above this many parameters hooks wait for memory (measured: 70x for 670,000, where ghost took 2.3x).
GHOST_PARAMETERS = 200_000
# Values of per-record gradients held at once by hooks, and records in one forward pass: both bound memory.
HELD_VALUES = 2**25
HELD_RECORDS = 4096
# Added to a norm before dividing, so that rounding never lets a clipped gradient exceed C; Opacus adds the same.
NORM_GUARD = 1e-6
_GRAD_SAMPLE = "grad_sample"  # where Opacus' hooks leave each record's gradient


def mode_of(model: nn.Module) -> Mode:
    """How the clipped sum of this model is best computed."""
    trained = [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    ghostly = all(isinstance(module, nn.Linear | nn.Embedding) for module in trained)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return "ghost" if ghostly or count > GHOST_PARAMETERS else "hooks"


class GradientSum:
    """Computes clipped (or, with mode `plain`, unclipped) sums for one model. Not for use by two threads at once."""

    def __init__(self, model: nn.Module, loss: Loss, mode: Mode, clip_norm: float | None = None) -> None:
        if (clip_norm is None) != (mode == "plain"):
            raise ValueError("a clip norm is for the modes that clip")
        self._loss = loss
        self._mode = mode
        self.clip_norm = clip_norm or 0.0
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._module: Any = _wrapped(model, mode, clip_norm)  # Opacus ships no types
        values = sum(parameter.numel() for parameter in self._trained)
        self._chunk = max(1, min(HELD_RECORDS, HELD_VALUES // values)) if mode == "hooks" else HELD_RECORDS

    def __call__(self, records: Records) -> tuple[list[Tensor], int]:
        """The sum, shaped like the trainable parameters in their order, and how many records were taken out."""
        total = [torch.zeros_like(parameter) for parameter in self._trained]
        taken_out = 0
        for chunk in records.chunks(self._chunk):
            part, out = self._part(chunk)
            taken_out += out
            for target, addend in zip(total, part, strict=True):
                target += addend
        return total, taken_out

    def _part(self, records: Records) -> tuple[list[Tensor], int]:
        if self._mode == "hooks":
            return self._hooked(records)
        if self._mode == "ghost":
            return self._ghosted(records)
        losses = self._losses(records)
        finite = torch.isfinite(losses)
        if not bool(finite.all()):
            records = records.select(finite)
            losses = self._losses(records)
        return self._gradients(losses), int((~finite).sum())

    def _hooked(self, records: Records) -> tuple[list[Tensor], int]:
        self._backward(self._losses(records))
        samples: list[Tensor] = [getattr(parameter, _GRAD_SAMPLE) for parameter in self._trained]
        norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
        finite = torch.isfinite(norms)
        weights = self._weights(norms)
        if not bool(finite.all()):
            samples, weights = [sample[finite] for sample in samples], weights[finite]
        sums = [torch.tensordot(weights, sample, dims=1) for sample in samples]
        self._forget()
        return sums, int((~finite).sum())

    def _ghosted(self, records: Records) -> tuple[list[Tensor], int]:
        losses = self._losses(records)
        self._backward(losses, retain=True)
        norms = self._module.get_norm_sample()
        finite = torch.isfinite(norms) & torch.isfinite(losses)
        weights = self._weights(norms)
        self._forget()
        self._module.disable_hooks()
        try:
            if not bool(finite.all()):
                losses, weights = self._losses(records.select(finite)), weights[finite]
            return self._gradients(losses * weights), int((~finite).sum())
        finally:
            self._module.enable_hooks()

    def _losses(self, records: Records) -> Tensor:
        return self._loss(self._module(records.inputs), records.targets)

    def _weights(self, norms: Tensor) -> Tensor:
        return (self.clip_norm / (norms + NORM_GUARD)).clamp(max=1.0)

    def _gradients(self, losses: Tensor) -> list[Tensor]:
        with _without_hook_warnings():
            gradients = torch.autograd.grad(losses.sum(), self._trained, allow_unused=True)
        pairs = zip(gradients, self._trained, strict=True)
        return [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]

    def _backward(self, losses: Tensor, retain: bool = False) -> None:
        with _without_hook_warnings():
            torch.autograd.backward(losses.sum(), retain_graph=retain)

    def _forget(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
            setattr(parameter, _GRAD_SAMPLE, None)


@contextmanager
def _without_hook_warnings() -> Iterator[None]:
    """Inputs need no gradient here, and torch says at every step that a hook fires nevertheless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _wrapped(model: nn.Module, mode: Mode, clip_norm: float | None) -> Any:
    if mode == "hooks":
        return GradSampleModule(model, loss_reduction="sum", strict=False)
    if mode == "ghost":
        return GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", strict=False, max_grad_norm=clip_norm, use_ghost_clipping=True
        )
    return model
