"""CohortTrainer: what client/training.LocalTrainer does for one node, for many at once, with each node's own numbers.

Which nodes share a batch follows from the cohort, the model and the device alone, and is fixed before training, so
that one seed gives one model on any number of processes: the caller hands whole groups to processes.

A group is trained hastily: whether all that it met was finite is looked at when it is done. If not, it is trained once
more from the start, with the same draws, node by node, and without the records that are not finite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...privacy.parameters import Array, Parameters
from ...privacy.submission import Submission
from .batches import Member
from .model import CohortModel
from .passes import Precision
from .steps import Steps
from .sums import CohortSums

# Parameters of a batch, and nodes in it, beyond which nothing is gained (measured, clipping or not: 10 nodes of up to
# 100,000 parameters, 1 of 800,000 and more). A GPU wants as much at once as its memory holds: 512 MB of them.
_CPU_VALUES, _CPU_NODES = 2**20, 10
_GPU_VALUES, _GPU_NODES = 2**27, 256
# Processes should find a few groups to share; but with fewer nodes than this in a group they would have more work.
_GROUPS, _FEWEST = 4, 5


def nodes_at_once(size: int, device: torch.device, asked: int) -> int:
    """How many nodes of a model of `size` parameters are trained in one batch, where so many are `asked` in a round.

    >>> [nodes_at_once(50_890, torch.device("cpu"), asked) for asked in (10, 12, 20, 100)]
    [5, 4, 5, 10]
    """
    if device.type != "cpu":
        return min(asked, _GPU_NODES, max(1, _GPU_VALUES // size))
    most = min(_CPU_NODES, max(1, _CPU_VALUES // size), max(_FEWEST, math.ceil(asked / _GROUPS)))
    return math.ceil(asked / math.ceil(asked / most))  # groups alike


def groups_of(sizes: Sequence[int], at_once: int) -> list[list[int]]:
    """Which nodes are trained together: places in `sizes`, those with nearly as many records side by side.

    >>> groups_of([10, 90, 12, 80], at_once=2)
    [[0, 2], [3, 1]]
    """
    order = sorted(range(len(sizes)), key=lambda place: (sizes[place], place))
    return [order[start : start + at_once] for start in range(0, len(order), at_once)]


@dataclass(frozen=True, slots=True, eq=False)
class CohortUpdate:
    """The trained parameters of some nodes, [N, d] float32, in the members' order.

    `taken_out`, by node, is for the local log alone; `done` is what the steps did, as LocalTrainer.done tells it.
    """

    model: CohortModel
    values: Tensor
    taken_out: tuple[int, ...]
    done: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.values)

    def of(self, node: int) -> dict[str, Array]:
        """One node's trainable parameters, [same shapes] float32."""
        return self.model.split(self.values[node])


class CohortTrainer:
    """Trains groups of nodes of one submission.

    `precision`: of the products in a pass (passes.py). Parameters are float32, and a claim is the same in either.
    """

    def __init__(
        self,
        model: CohortModel,
        submission: Submission,
        precision: Precision = "float32",
    ) -> None:
        if (submission.records_claim is None) != (submission.plan.privacy.record_clip_norm is None):
            raise ValueError("a claim and a clip norm come together: one alone would train without noise")
        self._model = model
        self._submission = submission
        self._plan = submission.plan
        self._claim = submission.records_claim
        self._sums = CohortSums(model, submission.plan.privacy.record_clip_norm, precision)

    def train_together(
        self,
        parameters: Parameters | Tensor,
        members: Sequence[Member],
        out: Tensor | None = None,
        corrections: Tensor | None = None,
    ) -> CohortUpdate:
        """`local-steps` steps of every member from `parameters`, all in one batch: one group of `groups_of`.

        `parameters`: by name, or one vector [d] float32 on the model's device, which is only read. `out` [N, d], the
        same: where the trained parameters are put. `corrections` [N, d]: what is added to each averaged gradient.
        """
        if (corrections is None) == (self._plan.aggregation.strategy == "scaffold"):
            raise ValueError("corrections and strategy 'scaffold' come together")
        start = parameters if isinstance(parameters, Tensor) else self._model.joined(parameters)
        values = torch.empty(len(members), self._model.size, device=self._model.device) if out is None else out
        together = self._steps(members, start, values, corrections)
        parts = [together]
        if not together.are_repeatable or not together.hastily():
            rows = [slice(n, n + 1) for n in range(len(members))]
            added = [corrections[row] if corrections is not None else None for row in rows]
            parts = [self._steps([m], start, values[r], c) for m, r, c in zip(members, rows, added, strict=True)]
            for part in parts:
                part.carefully()
        if self._plan.aggregation.update_precision == "bfloat16":  # what leaves: the nearest of its values
            values.copy_(values.bfloat16())
        taken_out = (part.taken_out for part in parts) if len(parts) == len(members) else [0] * len(members)
        return CohortUpdate(self._model, values, tuple(taken_out), self._done(parts))

    def _steps(self, members: Sequence[Member], start: Tensor, values: Tensor, corrections: Tensor | None) -> Steps:
        return Steps(self._model, self._sums, self._submission, members, start, values, corrections)

    def _done(self, parts: Sequence[Steps]) -> dict[str, str]:
        """What the steps did, as they reported it, and not as the plan asks for it: the auditor compares the two."""
        steps = min(len(part.multipliers) for part in parts)
        done = {"steps": str(steps), "sampling_rate": repr(self._plan.privacy.sampling_rate)}
        if self._claim is not None:
            multiplier = min(multiplier for part in parts for multiplier in part.multipliers)
            done |= {"noise_multiplier": repr(multiplier), "clip_norm": repr(self._sums.clip_norm)}
        return done
