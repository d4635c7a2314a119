"""Batches: the records of a step, of N nodes at once, from records that lie in memory only once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...client.randomness import Randomness
from ...client.tasks.protocol import Records


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A node that takes part: its records, or those at `indices` [M] int64 of records that many share."""

    records: Records
    declared_size: int
    randomness: Randomness
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.records) if self.indices is None else len(self.indices)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Inputs [B, N, ...] and targets [B, N, ...] of N nodes; where not `real` [B, N] any record fills a short batch."""

    inputs: Tensor
    targets: Tensor
    real: Tensor

    def split(self, count: int) -> list["Batch"]:
        """In parts of at most `count` of each node."""
        parts = (torch.split(tensor, count) for tensor in (self.inputs, self.targets, self.real))
        return [Batch(*part) for part in zip(*parts, strict=True)]

    def of(self, node: int) -> "Batch":
        """One node's own records, without what fills: N is 1."""
        real = self.real[:, node]
        inputs, targets = (t[:, node : node + 1][real] for t in (self.inputs, self.targets))
        return Batch(inputs, targets, self.real[:, node : node + 1][real])

    def where(self, kept: Tensor) -> "Batch":
        """Of a batch of one node the records of a mask [B, 1]."""
        places = kept.squeeze(1)
        return Batch(self.inputs[places], self.targets[places], self.real[places])


class Pool:
    """The records of some members on a device. Where they are parts of the same records, nothing is copied."""

    def __init__(self, members: Sequence[Member], device: torch.device) -> None:
        self._members = members
        self._device = device
        first = members[0].records
        if all(member.records is first for member in members):
            self._inputs, self._targets = first.inputs.to(device), first.targets.to(device)
            self._offsets = [0] * len(members)
            return
        self._inputs = torch.cat([member.records.inputs for member in members]).to(device)
        self._targets = torch.cat([member.records.targets for member in members]).to(device)
        sizes = torch.tensor([0, *(len(member.records) for member in members[:-1])])
        self._offsets = sizes.cumsum(dim=0).tolist()

    def draw(self, rate: float) -> Batch | None:
        """A Poisson batch of every member, each by its own randomness; None when all are empty."""
        drawn = [self._placed(node, m.randomness.poisson_sample(len(m), rate)) for node, m in enumerate(self._members)]
        places = pad_sequence(drawn, padding_value=-1)  # [B, N]
        if places.numel() == 0:
            return None
        real = places >= 0
        filled = torch.where(real, places, places.max()).to(self._device)
        inputs, targets = (t[filled.flatten()].view(*filled.shape, *t.shape[1:]) for t in (self._inputs, self._targets))
        return Batch(inputs, targets, real.to(self._device))

    def all_of(self, node: int) -> Records:
        """Every record of a member, in its own order."""
        places = self._placed(node, torch.arange(len(self._members[node]))).to(self._device)
        return Records(self._inputs[places], self._targets[places])

    def _placed(self, node: int, sample: Tensor) -> Tensor:
        """A member's own numbers of records as places in the pool."""
        indices = self._members[node].indices
        return self._offsets[node] + (sample if indices is None else indices[sample])
