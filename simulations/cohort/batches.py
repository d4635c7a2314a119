"""Batches: the records of a step, of N nodes at once, from records that lie in memory only once."""

from collections.abc import Callable, Iterator, Sequence
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
    """Inputs [B, N, ...] and targets [B, N, ...] of N nodes.

    `shares` [B, N] float32: by what a record's derivatives are multiplied; 0 where any record fills a short batch.
    In memory either dimension may come first (`Pool`).
    """

    inputs: Tensor
    targets: Tensor
    shares: Tensor

    def split(self, count: int) -> list["Batch"]:
        """In parts of at most `count` of each node."""
        if len(self.shares) <= count:
            return [self]
        parts = (torch.split(tensor, count) for tensor in (self.inputs, self.targets, self.shares))
        return [Batch(*part) for part in zip(*parts, strict=True)]

    def where(self, kept: Tensor) -> "Batch":
        """The records of a mask [B], of every node."""
        return Batch(self.inputs[kept], self.targets[kept], self.shares[kept])


class Pool:
    """The records of some members on a device. Where they are parts of the same records, nothing is copied.

    `is_by_node`: a node's records of a batch follow one another in memory, [N, B, ...], and not those of a place.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, *, is_by_node: bool = False) -> None:
        self._device = device
        self._is_by_node = is_by_node
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

    def batches(self, masks: Sequence[NDArray[np.bool_]], shares: Sequence[float]) -> Iterator[Batch | None]:
        """Step after step the records that each member has drawn; None when nobody has drawn any.

        `masks`: of each member whether a record takes part in a step, [steps, its size]; `shares`: of its records.
        """
        steps, nodes = len(masks[0]), len(masks)
        drawn = [np.nonzero(mask) for mask in masks]  # by step, then by record
        counts = np.stack([np.bincount(step, minlength=steps) for step, _ in drawn])  # [N, steps]
        longest = counts.max(axis=0)
        ends = (longest * nodes).cumsum()
        of_step, of_node = np.concatenate([step for step, _ in drawn]), np.repeat(np.arange(nodes), counts.sum(axis=1))
        firsts = counts.cumsum().reshape(counts.shape) - counts
        row = np.arange(len(of_step)) - firsts[of_node, of_step]  # among those that its node has drawn for the step
        within = of_node * longest[of_step] + row if self._is_by_node else row * nodes + of_node
        slots = (ends - longest * nodes)[of_step] + within
        places = np.zeros(ends[-1], dtype=np.int64)
        counted = np.zeros(ends[-1], dtype=np.float32)
        placed = np.concatenate([self._placed(node, record) for node, (_, record) in enumerate(drawn)])
        places[:] = placed[0] if len(placed) else 0  # any record fills a short batch
        places[slots], counted[slots] = placed, np.array(shares, dtype=np.float32)[of_node]
        parts = (torch.from_numpy(array).to(self._device) for array in (places, counted))
        lengths = (longest * nodes).tolist()
        for at, share in zip(*(torch.split(part, lengths) for part in parts), strict=True):
            yield self._batch(at, share, nodes) if len(at) else None

    def all_of(self, node: int) -> Records:
        """Every record of a member, in its own order."""
        places = torch.from_numpy(self._placed(node, np.arange(self.sizes[node]))).to(self._device)
        return Records(self._inputs.index_select(0, places), self._targets.index_select(0, places))

    def _batch(self, places: Tensor, shares: Tensor, nodes: int) -> Batch:
        """From flat places in the pool, in the order in which a batch lies in memory."""
        shape = (nodes, -1) if self._is_by_node else (len(places) // nodes, nodes)
        tensors = (self._inputs.index_select(0, places), self._targets.index_select(0, places), shares)
        apart = (tensor.view(*shape, *tensor.shape[1:]) for tensor in tensors)
        return Batch(*(tensor.transpose(0, 1) for tensor in apart) if self._is_by_node else apart)

    def _placed(self, node: int, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """A member's own numbers of records as places in the pool."""
        indices = self._indices[node]
        return sample + self._offsets[node] if indices is None else indices[sample] + self._offsets[node]
