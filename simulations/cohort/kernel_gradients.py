"""What one convolution of a trunk adds to the sums of some nodes: taken unit by unit on the way back, added at the end.

Without weights a node's sums are taken at once. With weights, which are known when the norms of all layers are, each
record's own gradient is kept; where those are too many, what they are made of, and each sum is a product of its own.
With weights all is summed place by place, never by frequencies: what a record adds rounds as its norm did.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .convolution import StackedConvolution
from .layers import weighted_channels
from .places import Convolved, record_gradients
from .stacked import HELD, squared_lengths

Taken = tuple[Tensor, Tensor, Tensor]  # what went in, derivatives by what came out, the kernel
Sums = dict[str, dict[int, Tensor]]  # by the name of a parameter, then by node


class KernelGradients(ABC):
    """Of one layer and one batch of `places` for `nodes` each. Where a node uses none, its gradients are zeros."""

    def __init__(self, layer: StackedConvolution, nodes: int, places: int) -> None:
        self._layer = layer
        self._shape = nodes, places

    @abstractmethod
    def take(self, nodes: list[int], passed: Convolved, backprops: Tensor) -> None:
        """Of some nodes' first places what was convolved, and derivatives by what came out, [B, n * O, H', W']."""

    @abstractmethod
    def squared_norms(self, backprops: Tensor) -> Tensor:
        """Of each record's gradient, [B, N] float64; `backprops` were taken already."""

    @abstractmethod
    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        """Add to the layer's sums, as StackedLayer does; `backprops` were taken already."""

    def _sum(self, sums: Sums, nodes: list[int], passed: Convolved, backprops: Tensor) -> None:
        found = {}
        if "weight" in self._layer.trained:
            found["weight"] = passed.by_kernel(backprops)
        if "bias" in self._layer.trained:
            found["bias"] = backprops.sum(dim=(0, 2, 3))
        for name, total in found.items():
            sums[name] |= zip(nodes, total.chunk(len(nodes)), strict=True)


def kernel_gradients(layer: StackedConvolution, nodes: int, places: int, *, by_record: bool) -> KernelGradients:
    """`by_record`: whether sums will be asked with weights."""
    if not by_record:
        return _Summed(layer, nodes, places)
    size = sum(layer.sizes.values())
    return _Kept(layer, nodes, places) if nodes * places * size <= HELD else _Remade(layer, nodes, places)


class _Summed(KernelGradients):
    def __init__(self, layer: StackedConvolution, nodes: int, places: int) -> None:
        super().__init__(layer, nodes, places)
        self._sums: Sums = defaultdict(dict)

    def take(self, nodes: list[int], passed: Convolved, backprops: Tensor) -> None:
        self._sum(self._sums, nodes, passed, backprops.float())

    def squared_norms(self, backprops: Tensor) -> Tensor:
        raise ValueError("norms are asked for of gradients that were summed")

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        if weights is not None:
            raise ValueError("weights are given for gradients that were summed")
        self._layer.put(self._sums)


class _Kept(KernelGradients):
    def __init__(self, layer: StackedConvolution, nodes: int, places: int) -> None:
        super().__init__(layer, nodes, places)
        self._kept = {name: torch.empty(nodes, places, size) for name, size in layer.sizes.items()}  # see `shaped`
        self._taken: set[int] = set()

    def take(self, nodes: list[int], passed: Convolved, backprops: Tensor) -> None:
        self._taken.update(nodes)
        for node, taken in _apart(nodes, passed, backprops):
            _of_records(self._layer, taken, {name: part[node] for name, part in self._kept.items()})

    def squared_norms(self, backprops: Tensor) -> Tensor:
        self._complete()
        return torch.stack([squared_lengths(part) for part in self._kept.values()]).sum(dim=0).t()

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        self._complete()
        by_node = torch.ones(self._shape) if weights is None else weights.t()
        sums = {name: torch.bmm(by_node.unsqueeze(1), part).squeeze(1) for name, part in self._kept.items()}
        self._layer.put({name: dict(enumerate(self._layer.shaped(name, total))) for name, total in sums.items()})

    def _complete(self) -> None:
        """Make zeros of what nobody took."""
        for node in set(range(self._shape[0])) - self._taken:
            for part in self._kept.values():
                part[node].zero_()


class _Remade(KernelGradients):
    def __init__(self, layer: StackedConvolution, nodes: int, places: int) -> None:
        super().__init__(layer, nodes, places)
        self._squares = torch.zeros(nodes, places, dtype=torch.float64)
        self._passed: list[tuple[list[int], Convolved, Tensor]] = []

    def take(self, nodes: list[int], passed: Convolved, backprops: Tensor) -> None:
        by_places = Convolved(passed.geometry, passed.inputs, passed.kernel, passed.units)
        self._passed.append((nodes, by_places, backprops.float()))
        at_once = max(1, HELD // sum(self._layer.sizes.values()))
        for node, (own_inputs, own_backprops, own_kernel) in _apart(nodes, passed, backprops):
            for start in range(0, len(own_inputs), at_once):
                rows = slice(start, start + at_once)
                taken = own_inputs[rows], own_backprops[rows], own_kernel
                parts = {name: torch.empty(len(taken[0]), size) for name, size in self._layer.sizes.items()}
                _of_records(self._layer, taken, parts)
                for part in parts.values():
                    self._squares[node, start : start + len(part)] += squared_lengths(part)

    def squared_norms(self, backprops: Tensor) -> Tensor:
        return self._squares.t()

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        sums: Sums = defaultdict(dict)
        for nodes, passed, weighted in self._passed:
            if weights is not None:
                weighted = weighted_channels(weighted, weights[: len(weighted), nodes])
            self._sum(sums, nodes, passed, weighted)
        self._layer.put(sums)


def _apart(nodes: list[int], passed: Convolved, backprops: Tensor) -> Iterator[tuple[int, Taken]]:
    """What was taken of some nodes, of each; float32."""
    wide = passed.inputs.float(), backprops.float()
    parts = *(values.chunk(len(nodes), dim=1) for values in wide), passed.kernel.chunk(len(nodes))
    return zip(nodes, zip(*parts, strict=True), strict=True)


def _of_records(layer: StackedConvolution, taken: Taken, out: Mapping[str, Tensor]) -> None:
    """Each record's gradients into the first rows of `out`, by name [B, P]; zeros into the others."""
    inputs, backprops, kernel = taken
    for name, part in out.items():
        part[len(inputs) :].zero_()
        own = part[: len(inputs)]
        if name == "weight":
            record_gradients(layer.geometry, inputs, backprops, kernel, own)
        else:
            torch.sum(backprops, dim=(2, 3), out=own)
