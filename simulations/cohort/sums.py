"""The clipped sums of N nodes' batches: what client/gradients.py computes for one node, for all in one pass.

One forward pass, one backward pass to what each trained layer gave, norms by book-keeping, and a weighted product of
what was kept (Bu et al. 2022). Records that only fill a batch start the backward pass with a derivative of zero.

A record whose gradient is not finite (without clipping: whose loss) is taken out before anything is summed. Since
0 * inf is NaN, that is done for one node at a time, from its own records only: `add_finite`. `add` takes all nodes at
once, and whoever calls it looks afterwards whether all that it met was finite; if not, nothing of it may be used.
"""

import torch
from torch import Tensor

from ...client.clipping import HELD_RECORDS, clip_weights, scale_of
from .batches import Batch
from .model import CohortModel
from .passes import Precision, passed
from .tape import Found


class CohortSums:
    """Adds clipped (without a clip norm: unclipped) sums to what a model is bound to, each times `scale`."""

    def __init__(self, model: CohortModel, clip_norm: float | None, precision: Precision = "float32") -> None:
        self._model = model
        self._precision = precision
        self.clip_norm = clip_norm
        self.scale = 1.0 if clip_norm is None else scale_of(clip_norm)

    def add(self, batch: Batch) -> list[Tensor]:
        """All nodes in one pass; gives what must be finite: losses [B, N], and norms [B, N] where it clips."""
        try:
            losses, found = passed(self._model, batch, self._precision)
            norms = self._norms(found, losses)
            _add_sums(found, None if norms is None else clip_weights(norms, self.clip_norm or 0.0))
            return [losses] if norms is None else [losses, norms]
        finally:
            self._model.forget()

    def add_finite(self, batch: Batch) -> int:
        """One node's own records, without those that are not finite; how many were taken out."""
        kept = batch
        while len(kept.shares) and (finite := self._added_unless(kept)) is not None:
            kept = kept.where(finite)
        return len(batch.shares) - len(kept.shares)

    def _added_unless(self, batch: Batch) -> Tensor | None:
        """Which of one node's records are finite, [B], when not all are; None when they are, and have been added."""
        try:
            losses, found = passed(self._model, batch, self._precision)
            norms = self._norms(found, losses)
            finite = torch.isfinite(losses) if norms is None else torch.isfinite(losses) & torch.isfinite(norms)
            if not bool(finite.all()):
                return finite.squeeze(1)
            _add_sums(found, None if norms is None else clip_weights(norms, self.clip_norm or 0.0))
            return None
        finally:
            self._model.forget()

    def _norms(self, found: Found, losses: Tensor) -> Tensor | None:
        """Of each record's gradient over all parameters together, [B, N]; None where nothing is clipped."""
        if self.clip_norm is None:
            return None
        squares = torch.zeros(losses.shape, dtype=torch.float64, device=losses.device)
        for layer, backprops in found:
            squares += layer.squared_norms(backprops)
        return squares.sqrt().to(losses.dtype)


def parts_of(batch: Batch) -> list[Batch]:
    """A batch in parts of which one may pass at once."""
    return batch.split(records_at_once(batch.shares.shape[1]))


def records_at_once(nodes: int) -> int:
    """How many records of each of so many nodes may pass at once."""
    return max(1, HELD_RECORDS // nodes)


def _add_sums(found: Found, weights: Tensor | None) -> None:
    for layer, backprops in found:
        layer.add_sums(backprops, weights)
