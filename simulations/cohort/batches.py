"""Batches: the records of a step, of N nodes at once, from records that lie in memory only once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...client.randomness import Randomness
from ...client.tasks.protocol import Records


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A node that takes part: its records, or those at `indices` [M] int64 of records that many share.

    `randomness` gives what it draws from, from the start at each call: the same numbers where they are seeded.
    """

    records: Records
    declared_size: int
    randomness: Callable[[], Randomness]
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
        if len(self.real) <= count:
            return [self]
        parts = (torch.split(tensor, count) for tensor in (self.inputs, self.targets, self.real))
        return [Batch(*part) for part in zip(*parts, strict=True)]

    def where(self, kept: Tensor) -> "Batch":
        """The records of a mask [B], of every node."""
        return Batch(self.inputs[kept], self.targets[kept], self.real[kept])


class Pool:
    """The records of some members on a device. Where they are parts of the same records, nothing is copied."""

    def __init__(self, members: Sequence[Member], device: torch.device) -> None:
        self._device = device
        self.sizes = [len(member) for member in members]
        self._indices = [None if member.indices is None else member.indices.numpy() for member in members]
        first = members[0].records
        if all(member.records is first for member in members):
            self._inputs, self._targets = first.inputs.to(device), first.targets.to(device)
            self._offsets = [0] * len(members)
            return
        self._inputs = torch.cat([member.records.inputs for member in members]).to(device)
        self._targets = torch.cat([member.records.targets for member in members]).to(device)
        sizes = torch.tensor([0, *(len(member.records) for member in members[:-1])])
        self._offsets = sizes.cumsum(dim=0).tolist()

    def batch(self, samples: Sequence[Tensor]) -> Batch | None:
        """The records that each member has drawn, by its own numbers of them; None when nobody has drawn any."""
        placed = [self._placed(node, sample.numpy()) for node, sample in enumerate(samples)]
        counts = [len(own) for own in placed]
        longest = max(counts)
        if longest == 0:
            return None
        places = np.full((longest, len(samples)), placed[counts.index(longest)][0], dtype=np.int64)
        for node, own in enumerate(placed):
            places[: len(own), node] = own
        real = np.arange(longest)[:, None] < np.array(counts)
        inputs, targets = self._at(torch.from_numpy(places))
        return Batch(inputs, targets, torch.from_numpy(real).to(self._device))

    def all_of(self, node: int) -> Records:
        """Every record of a member, in its own order."""
        return Records(*self._at(torch.from_numpy(self._placed(node, np.arange(self.sizes[node])))))

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at places in the pool, of any shape."""
        flat = places.flatten().to(self._device)
        inputs, targets = (
            tensor.index_select(0, flat).view(*places.shape, *tensor.shape[1:])
            for tensor in (self._inputs, self._targets)
        )
        return inputs, targets

    def _placed(self, node: int, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """A member's own numbers of records as places in the pool."""
        indices = self._indices[node]
        return sample + self._offsets[node] if indices is None else indices[sample] + self._offsets[node]
