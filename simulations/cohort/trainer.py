"""CohortTrainer: what client/training.LocalTrainer does for one node, for many at once, with each node's own numbers.

Which nodes share a batch follows from the cohort, the model and the device alone, and is fixed before training, so
that one seed gives one model on any number of processes: the caller hands whole groups to processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...client.optimizer import optimizer_of
from ...privacy.parameters import Array, Parameters
from ...privacy.submission import Submission
from .batches import Member, Pool
from .model import CohortModel
from .sums import CohortSums

# Parameters that fit the caches next to the activations, and nodes beyond which nothing is gained (measured: 5 nodes of
# 50,000 parameters, 1 of 1.6 million). A GPU wants as much at once as its memory holds: 512 MB of parameters.
_CPU_VALUES, _CPU_NODES = 2**18, 5
_GPU_VALUES, _GPU_NODES = 2**27, 256


def nodes_at_once(size: int, device: torch.device) -> int:
    """How many nodes of a model of `size` parameters are trained in one batch.

    >>> nodes_at_once(50_890, torch.device("cpu")), nodes_at_once(1_600_000, torch.device("cpu"))
    (5, 1)
    """
    values, nodes = (_CPU_VALUES, _CPU_NODES) if device.type == "cpu" else (_GPU_VALUES, _GPU_NODES)
    return min(nodes, max(1, values // size))


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
    """Trains the nodes of one submission. `at_once`: how many share a batch, by default as `nodes_at_once` says."""

    def __init__(self, model: CohortModel, submission: Submission, at_once: int | None = None) -> None:
        if (submission.records_claim is None) != (submission.plan.privacy.record_clip_norm is None):
            raise ValueError("a claim and a clip norm come together: one alone would train without noise")
        self._model = model
        self._plan = submission.plan
        self._claim = submission.records_claim
        self.at_once = at_once or nodes_at_once(model.size, model.device)
        self._sums = CohortSums(model, submission.plan.privacy.record_clip_norm)

    def train(self, parameters: Parameters, members: Sequence[Member]) -> CohortUpdate:
        """`local-steps` steps of every member from `parameters`, group by group."""
        values = torch.empty(len(members), self._model.size, device=self._model.device)
        taken_out, done = [0] * len(members), {}
        for group in groups_of([len(member) for member in members], self.at_once):
            update = self.train_together(parameters, [members[place] for place in group])
            values[group] = update.values
            done = dict(update.done)
            for place, count in zip(group, update.taken_out, strict=True):
                taken_out[place] = count
        return CohortUpdate(self._model, values, tuple(taken_out), done)

    def train_together(self, parameters: Parameters, members: Sequence[Member]) -> CohortUpdate:
        """The same, all members in one batch: one group of `groups_of`."""
        start = self._model.joined(parameters)
        values = start.repeat(len(members), 1)
        values.grad = torch.empty_like(values)
        optimizer = optimizer_of(self._plan.training, [values])
        for member in members:
            member.randomness.module_seed()  # drawn and not used, as by a model without dropout
        pool = Pool(members, self._model.device)
        denominators = torch.tensor([self._plan.privacy.sampling_rate * m.declared_size for m in members])
        taken_out = [0] * len(members)
        multipliers = []
        for _ in range(self._plan.training.local_steps):
            out = self._sums(values, pool.draw(self._plan.privacy.sampling_rate), values.grad)
            multipliers.append(self._noised(values.grad, members))
            self._average(values.grad, denominators, values, start)
            optimizer.step()
            taken_out = [before + now for before, now in zip(taken_out, out, strict=True)]
        return CohortUpdate(self._model, self._rounded(values), tuple(taken_out), self._done(multipliers))

    def _noised(self, sums: Tensor, members: Sequence[Member]) -> float:
        """Add to each node's sum its noise; gives the smallest multiplier of what was added, 0 where nothing was."""
        clip_norm = self._plan.privacy.record_clip_norm
        if self._claim is None or clip_norm is None:
            return 0.0
        multiplier = self._claim.noise_multiplier
        return min(self._add_noise(*pair, multiplier, clip_norm) for pair in zip(sums, members, strict=True))

    def _add_noise(self, total: Tensor, member: Member, multiplier: float, clip_norm: float) -> float:
        """A node's own Gaussian vector, in the order of its parameters; gives its multiplier, for the record."""
        total.add_(member.randomness.gaussian(self._model.size).to(total.device), alpha=multiplier * clip_norm)
        return multiplier

    def _average(self, sums: Tensor, denominators: Tensor, values: Tensor, start: Tensor) -> None:
        sums.div_(denominators.to(sums).unsqueeze(1))
        if self._plan.aggregation.proximal_mu:
            sums.add_(values - start, alpha=self._plan.aggregation.proximal_mu)

    def _rounded(self, values: Tensor) -> Tensor:
        """What leaves: with `update-precision` bfloat16 the nearest of its values, as float32."""
        return values.bfloat16().float() if self._plan.aggregation.update_precision == "bfloat16" else values

    def _done(self, multipliers: Sequence[float]) -> dict[str, str]:
        """What the steps did, as they reported it, and not as the plan asks for it: the auditor compares the two."""
        done = {"steps": str(len(multipliers)), "sampling_rate": repr(self._plan.privacy.sampling_rate)}
        if self._claim is not None:
            done |= {"noise_multiplier": repr(min(multipliers)), "clip_norm": repr(self._sums.clip_norm)}
        return done
