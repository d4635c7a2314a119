"""The sum of per-record gradients, each clipped to an L2 norm: the module that trains with Opacus (sampled.py).

The rule (Abadi et al. 2016, algorithm 1): g_i = gradient of record i's loss over all trainable parameters together;
the sum is over g_i * min(1, C / ||g_i||). So one record adds at most C to it, whatever the record.

Two ways to the same sum, both checked against a record-by-record computation:
- hooks: every g_i stands in memory, B times the model. Good for convolutions and small models.
- ghost: only the norms, then a second backward pass of the weighted loss (Goodfellow 2015; Li et al. 2022). Good for
  linear and large models, which hooks would make wait for memory.

A record whose gradient is not finite is taken out before anything is summed: with weight zero it would still be there,
since 0 * inf is NaN. Which these are is decided once, in the pass that measures the norms, so that no record's fate
depends on another's. How many were taken out is known to the node alone. (Mode `plain` goes by the loss.)

Both ways trust that a trainable parameter is used by its own module's forward, whose first dimension is the records.
What breaks that (tied weights, records folded into another dimension) is found by the probe, and where it shows in
shapes, here.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..privacy.errors import TaskError
from .clipping import HELD_RECORDS, HELD_VALUES, Mode, clip_weights, own_parameters, scale_of
from .tasks.protocol import Records

Loss = Callable[[Tensor, Tensor], Tensor]

# Where Opacus' hooks leave, on each parameter and each module, what they saw of a batch.
_GRAD_SAMPLE, _NORM_SAMPLE = "grad_sample", "_norm_sample"
_LEFT_ON_PARAMETERS = (_NORM_SAMPLE, "_current_grad_sample")
_LEFT_ON_MODULES = ("activations", "max_batch_len")


class GradientSum:
    """Computes clipped (or, with mode `plain`, unclipped) sums for one model. Not for use by two threads at once."""

    def __init__(self, model: nn.Module, loss: Loss, mode: Mode, clip_norm: float | None = None) -> None:
        if (clip_norm is None) != (mode == "plain"):
            raise ValueError("a clip norm is for the modes that clip")
        self._model = model
        self._loss = loss
        self._mode = mode
        self.clip_norm = clip_norm or 0.0
        self._scale = scale_of(clip_norm) if clip_norm is not None else 1.0
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._module: Any = _wrapped(model, mode, clip_norm)  # Opacus ships no types
        self._chunk = max(1, min(HELD_RECORDS, HELD_VALUES // max(1, _values_held(model, mode))))

    def __call__(self, records: Records) -> tuple[list[Tensor], int]:
        """The sum, shaped like the trainable parameters in their order, and how many records were taken out."""
        total = [torch.zeros_like(parameter) for parameter in self._trained]
        taken_out = 0
        for chunk in records.chunks(self._chunk):
            try:
                part, out = self._part(chunk)
            finally:
                self._forget()
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
        losses = self._losses(records)
        self._backward(losses)
        samples = self._left(_GRAD_SAMPLE, len(records))
        norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
        finite = torch.isfinite(norms) & torch.isfinite(losses)
        weights = clip_weights(norms, self.clip_norm)
        if not bool(finite.all()):
            samples, weights = [sample[finite] for sample in samples], weights[finite]
        sums = [torch.tensordot(weights, sample, dims=1) for sample in samples]
        return self._unscaled(sums), int((~finite).sum())

    def _ghosted(self, records: Records) -> tuple[list[Tensor], int]:
        restore = _random_state(self._trained[0].device)
        losses = self._losses(records)
        self._backward(losses, retain=True)
        norms = torch.stack(self._left(_NORM_SAMPLE, len(records))).norm(dim=0).to(losses.dtype)
        finite = torch.isfinite(norms) & torch.isfinite(losses)
        taken_out = int((~finite).sum())
        if taken_out == len(records):
            return [torch.zeros_like(parameter) for parameter in self._trained], taken_out
        self._forget()
        self._module.disable_hooks()
        try:
            if taken_out:
                restore()  # dropout must draw the same again: the norms are those of its first draw
                losses = self._losses(_with_stand_ins(records, finite))
            return self._unscaled(
                self._gradients(losses[finite] * clip_weights(norms, self.clip_norm)[finite])
            ), taken_out
        finally:
            self._module.enable_hooks()

    def _losses(self, records: Records) -> Tensor:
        losses = self._loss(self._module(records.inputs), records.targets)
        if losses.shape != (len(records),):
            raise _not_per_record(f"the loss of {len(records)} records has shape {list(losses.shape)}")
        return losses

    def _left(self, what: str, count: int) -> list[Tensor]:
        """What the hooks left on each parameter, [count, ...]."""
        found = [getattr(parameter, what, None) for parameter in self._trained]
        tensors = [tensor for tensor in found if isinstance(tensor, Tensor) and len(tensor) == count]
        if len(tensors) != len(self._trained):
            raise _not_per_record("a parameter has no gradient for each record")
        return tensors

    def _unscaled(self, sums: list[Tensor]) -> list[Tensor]:
        return [total * (1 / self._scale) for total in sums]  # a power of two: no digit changes

    def _gradients(self, losses: Tensor) -> list[Tensor]:
        with _without_hook_warnings():
            gradients = torch.autograd.grad(losses.sum(), self._trained, allow_unused=True)
        pairs = zip(gradients, self._trained, strict=True)
        return [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]

    def _backward(self, losses: Tensor, retain: bool = False) -> None:
        with _without_hook_warnings():
            torch.autograd.backward(losses.sum(), retain_graph=retain)

    def _forget(self) -> None:
        """Leave nothing of a batch behind, also of one that failed half-way."""
        if self._mode == "plain":
            return
        for parameter in self._trained:
            parameter.grad = None
            setattr(parameter, _GRAD_SAMPLE, None)
            setattr(parameter, "_forward_counter", 0)  # noqa: B010 - Opacus' own attribute, unknown to torch's types
            for name in _LEFT_ON_PARAMETERS:
                parameter.__dict__.pop(name, None)
        for module in self._model.modules():
            for name in _LEFT_ON_MODULES:
                module.__dict__.pop(name, None)


def _values_held(model: nn.Module, mode: Mode) -> int:
    """How many values a record's gradient takes in memory; ghost holds none of linear layers and embeddings."""
    if mode == "plain":
        return 0
    holds = [m for m in model.modules() if mode == "hooks" or not isinstance(m, nn.Linear | nn.Embedding)]
    return sum(parameter.numel() for module in holds for parameter in own_parameters(module))


def _with_stand_ins(records: Records, finite: Tensor) -> Records:
    """As many records in the same places, a finite one wherever there was none: for a weight of zero."""
    places = torch.arange(len(records), device=finite.device)
    return records.select(torch.where(finite, places, places[finite][0]))


def _random_state(device: torch.device) -> Callable[[], None]:
    """Remember torch's generators; what is returned puts them back."""
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return restore


def _not_per_record(why: str) -> TaskError:
    return TaskError(
        f"the model does not treat each record by itself: {why}",
        "keep records in the first dimension of every module, and use a parameter in one module only",
    )


@contextmanager
def _without_hook_warnings() -> Iterator[None]:
    """Inputs need no gradient here, and torch says at every step that a hook fires nevertheless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _wrapped(model: nn.Module, mode: Mode, clip_norm: float | None) -> Any:
    if mode == "plain":
        return model
    from .sampled import ghost_wrapped, hooked  # Opacus, which takes seconds to import

    return hooked(model) if mode == "hooks" else ghost_wrapped(model, clip_norm)
