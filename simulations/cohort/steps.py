"""Steps: the local steps of some nodes, from one set of parameters to each node's own.

Gradients are summed in a buffer of the parameters' shape, into which a private step first draws its noise. Where the
optimiser does nothing but subtract (SGD without momentum, decay or proximal term) the buffer then moves the parameters
in one pass over memory. Where besides there is no noise, and a batch passes at once, the products move the parameters
themselves: a record's derivative is multiplied by the step's length from the start, and the sum rounds once.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...client.optimizer import is_plain, optimizer_of
from ...client.randomness import Randomness
from ...privacy.submission import Submission
from .batches import Batch, Member, Pool
from .model import CohortModel
from .sums import CohortSums, parts_of, records_at_once

_DRAWN = 2**18  # of one member, whether a record takes part in a step: held at once


class Steps:
    """Moves `values` [N, d] of some members from `start` [d]; once, and either way: hastily or carefully."""

    def __init__(
        self,
        model: CohortModel,
        sums: CohortSums,
        submission: Submission,
        members: Sequence[Member],
        start: Tensor,
        values: Tensor,
        corrections: Tensor | None = None,
    ) -> None:
        """`corrections` [N, d]: what is added to each averaged gradient (variates.py)."""
        self._model = model
        self._sums = sums
        self._plan = submission.plan
        self._claim = submission.records_claim
        self._start = start
        self._values = values.copy_(start)
        self._corrections = corrections
        self._pool = Pool(members, model.device, is_by_node=model.begins_by_node)
        self._draws = [member.randomness() for member in members]
        self._denominators = [self._plan.privacy.sampling_rate * member.declared_size for member in members]
        only_subtracts = is_plain(self._plan.training) and not self._plan.aggregation.proximal_mu
        self._optimizer = None if only_subtracts else optimizer_of(self._plan.training, [values])
        whole = max(self._pool.sizes) <= records_at_once(len(members))
        self._is_direct = only_subtracts and whole and self._claim is None and corrections is None
        self._totals = values if self._is_direct else torch.empty_like(values)
        self._met: list[Tensor] = []
        self.multipliers: list[float] = []
        self.taken_out = 0

    @property
    def are_repeatable(self) -> bool:
        """Whether other Steps of the same members would draw the same."""
        return all(draw.is_seeded for draw in self._draws)

    def hastily(self) -> bool:
        """All steps; whether all was finite: if not, the values are worth nothing."""
        self._run(is_careful=False)
        self._met.append(self._values)
        return bool(torch.isfinite(torch.stack([part.sum() for part in self._met])).all())

    def carefully(self) -> None:
        """All steps of one member, each without the records that are not finite; `taken_out` says of how many."""
        self._run(is_careful=True)

    def _run(self, is_careful: bool) -> None:
        self._model.bind(self._values, self._totals)
        for draw in self._draws:
            draw.module_seed()  # drawn and not used, as by a model without dropout
        for batch in self._batches():
            parts = parts_of(batch) if batch is not None else []
            self.multipliers.append(self._begin())
            self._add(parts, is_careful)
            if not self._is_direct:
                self._move()

    def _batches(self) -> Iterator[Batch | None]:
        """One for each step; the draws of many steps are taken at once."""
        steps, rate, sizes = self._plan.training.local_steps, self._plan.privacy.sampling_rate, self._pool.sizes
        at_once = max(1, _DRAWN // max(1, *sizes))
        for first in range(0, steps, at_once):
            count = min(at_once, steps - first)
            draws = zip(self._draws, sizes, strict=True)
            masks = [draw.poisson_masks(size, rate, count) for draw, size in draws]
            yield from self._pool.batches(masks, self._shares())

    def _shares(self) -> list[float]:
        """By what the derivatives of each member's records are multiplied."""
        rate = self._plan.training.learning_rate
        return [-rate / denominator if self._is_direct else 1.0 for denominator in self._denominators]

    def _begin(self) -> float:
        """Put each node's noise where its sum will be; gives the smallest multiplier of what was put, 0 for nothing."""
        clip_norm = self._plan.privacy.record_clip_norm
        if self._claim is None or clip_norm is None:
            if not self._is_direct:
                self._model.clear_sums()
            return 0.0
        multiplier = self._claim.noise_multiplier
        pairs = zip(self._totals, self._draws, strict=True)
        return min(self._put_noise(total, draw, multiplier, clip_norm) for total, draw in pairs)

    def _put_noise(self, total: Tensor, draw: Randomness, multiplier: float, clip_norm: float) -> float:
        """A node's own Gaussian vector, in the order of its parameters; gives its multiplier, for the record."""
        draw.gaussian_into(total, multiplier * clip_norm * self._sums.scale)
        return multiplier

    def _add(self, parts: list[Batch], is_careful: bool) -> None:
        for part in parts:
            if is_careful:
                self.taken_out += self._sums.add_finite(part)
            else:
                self._met += self._sums.add(part)
        self._model.settle_sums()

    def _move(self) -> None:
        """One step of the optimiser by the averages of what was summed."""
        averaging = [1 / (self._sums.scale * denominator) for denominator in self._denominators]
        if self._optimizer is None:
            self._subtract([self._plan.training.learning_rate * share for share in averaging])
            if self._corrections is not None:
                self._values.add_(self._corrections, alpha=-self._plan.training.learning_rate)
            return
        self._totals.mul_(torch.tensor(averaging, device=self._totals.device).unsqueeze(1))
        if self._plan.aggregation.proximal_mu:
            self._totals.add_(self._values - self._start, alpha=self._plan.aggregation.proximal_mu)
        if self._corrections is not None:
            self._totals.add_(self._corrections)
        self._values.grad = self._totals
        self._optimizer.step()
        self._values.grad = None

    def _subtract(self, rates: Sequence[float]) -> None:
        """Each node's total times its rate; at once where all have one."""
        if len(set(rates)) == 1:
            self._values.sub_(self._totals, alpha=rates[0])
            return
        for row, total, rate in zip(self._values, self._totals, rates, strict=True):
            row.sub_(total, alpha=rate)
