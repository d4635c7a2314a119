"""The clipped sums of N nodes' batches: what client/gradients.py computes for one node, for all in one pass.

One forward pass, one backward pass to what each trained layer gave, norms by book-keeping, and a weighted product of
what was kept (Bu et al. 2022). Records that only fill a batch start the backward pass with a derivative of zero.

A record whose gradient is not finite (without clipping: whose loss) is taken out before anything is summed. Since
0 * inf is NaN, a pass that meets one adds nothing: the step is done again node by node, from each node's own records
only, and there without those records. So nothing of one node, and nothing that fills, ever reaches another's sum.
"""

import torch
from torch import Tensor

from ...client.clipping import HELD_RECORDS, clip_weights, scale_of
from ...privacy.errors import TaskError
from .batches import Batch
from .model import CohortModel
from .unsupported import UnsupportedError


class CohortSums:
    """Computes clipped (without a clip norm: unclipped) sums for one model."""

    def __init__(self, model: CohortModel, clip_norm: float | None) -> None:
        self._model = model
        self.clip_norm = clip_norm
        self._unscale = 1.0 if clip_norm is None else 1 / scale_of(clip_norm)

    def __call__(self, values: Tensor, batch: Batch | None, sums: Tensor) -> list[int]:
        """Put into `sums` [N, d] those at parameters `values` [N, d]; how many records of each node were taken out."""
        sums.zero_()
        taken_out = [0] * len(values)
        if batch is not None and not self._whole(values, sums, batch):
            sums.zero_()
            taken_out = [self._alone(values, sums, batch, node) for node in range(len(values))]
        if self._unscale != 1.0:
            sums.mul_(self._unscale)
        return taken_out

    def _whole(self, values: Tensor, sums: Tensor, batch: Batch) -> bool:
        """All nodes in one pass; False, with the sums unfinished, when something is not finite."""
        self._model.bind(values, sums)
        for part in batch.split(max(1, HELD_RECORDS // len(values))):
            if not bool(self._add(part).all()):
                return False
        return bool(torch.isfinite(sums.sum()))  # without clipping a finite loss may have a gradient that is not

    def _alone(self, values: Tensor, sums: Tensor, batch: Batch, node: int) -> int:
        """One node's records; how many were taken out."""
        self._model.bind(values[node : node + 1], sums[node : node + 1])
        taken_out = 0
        for part in batch.of(node).split(HELD_RECORDS):
            kept = part
            while len(kept.real) and not bool((finite := self._add(kept)).all()):
                kept = kept.where(finite)
            taken_out += len(part.real) - len(kept.real)
        return taken_out

    def _add(self, batch: Batch) -> Tensor:
        """Add a batch to the sums that are bound, if all of it is finite; which records are, [B, N]."""
        try:
            losses = self._losses(batch)
            return self._added(losses, batch.real)
        finally:
            self._model.forget()

    def _added(self, losses: Tensor, real: Tensor) -> Tensor:
        layers = [layer for layer in self._model.layers if layer.output is not None]
        if any(layer.is_overwritten for layer in layers):
            raise UnsupportedError("the model's forward: it overwrites what a layer gave")
        outputs = [layer.output for layer in layers if layer.output is not None]
        starts = real.flatten().to(losses.dtype)
        # By a product: torch imports sympy where it is told `grad_outputs`.
        backprops = torch.autograd.grad(torch.dot(losses, starts), outputs, allow_unused=True)
        found = [(layer, part) for layer, part in zip(layers, backprops, strict=True) if part is not None]
        finite, weights = torch.isfinite(losses.detach()).view(real.shape), None
        if self.clip_norm is not None:
            squares = torch.stack([layer.squared_norms(part) for layer, part in found]).sum(dim=0)
            norms = squares.sqrt().to(losses.dtype)
            finite &= torch.isfinite(norms)
            weights = clip_weights(norms, self.clip_norm)
        if bool(finite.all()):
            for layer, part in found:
                layer.add_sums(part, weights)
        return finite

    def _losses(self, batch: Batch) -> Tensor:
        outputs = self._model(batch.inputs.flatten(0, 1))
        losses = self._model.task.loss(outputs, batch.targets.flatten(0, 1))
        if losses.shape != (batch.real.numel(),):
            raise TaskError(f"the loss of {batch.real.numel()} records has shape {list(losses.shape)}", "mend the loss")
        return losses
