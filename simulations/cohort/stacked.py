"""StackedLayer: one layer of a model, of N nodes at once, and the gradients of each record by book-keeping.

Records are folded: record b of node n stands at place b * N + n of [B * N, ...], so that a module without trainable
parameters may be applied to all as it is. In the gradients' book-keeping the two are apart again: [B, N, ...].

A forward pass leaves behind what went in and what came out. The gradient of the loss by what came out, `backprops`,
then gives each record's gradient by the layer's parameters, or its norm alone: no second backward pass (Bu et al. 2022;
the norm of a product of vectors: Goodfellow 2015; Li et al. 2022).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Values of per-record gradients of one layer kept from the norms to the sum: 16 MB. Above it they are computed in
# parts for their norms, and the sum is a product of its own.
HELD = 2**22
_LONG, _PIECE = 1024, 32  # values of a vector whose length is taken by pieces, and of a piece


@dataclass(slots=True, eq=False)
class Bound:
    """What a layer computes with, and what a pass has left in it. No attributes of a module: those are slow to set.

    `values`, `sums`: its parameters and the sums of their gradients, [N, *shape]; views into the cohort's storage.
    `are_cleared`: whatever stands in the sums counts as zero. They are written, and not read before.
    `is_by_node`: the last pass gave the layer what it takes as [N, B, ...].
    """

    nodes: int
    values: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    are_cleared: bool = False
    is_by_node: bool = False
    inputs: Tensor | None = None
    output: Tensor | None = None
    version: int = 0  # of the output, when it was given
    kept: dict[str, Tensor] = field(default_factory=dict)  # records' gradients


class StackedLayer(nn.Module, ABC):
    """A layer of N nodes. Its parameters are views into the cohort's storage; frozen ones are shared by all nodes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        own = dict(layer.named_parameters(recurse=False))
        self.path = ""  # in the task's model
        self.trained = [name for name, parameter in own.items() if parameter.requires_grad]
        self._frozen = {name: p.detach() for name, p in own.items() if not p.requires_grad}
        self._bound = Bound(0, {}, {})

    def bind(self, nodes: int, values: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Use these parameters [N, *shape], and add to these sums [N, *shape]: views, not copies."""
        self._bound = Bound(nodes, values, sums)

    def clear(self) -> None:
        """Begin sums anew, without a pass over memory."""
        self._bound.are_cleared = True

    def settle(self) -> None:
        """Make zeros of sums to which nothing was added."""
        if self._bound.are_cleared:
            for total in self._sums.values():
                total.zero_()
            self._bound.are_cleared = False

    def forget(self) -> None:
        """Leave nothing of a batch behind."""
        bound = self._bound
        bound.inputs = bound.output = None
        bound.kept = {}

    @property
    def output(self) -> Tensor | None:
        """What it gave in a pass of which torch keeps a graph."""
        return self._bound.output

    @property
    def is_overwritten(self) -> bool:
        """Whether something changed in place what this layer gave: no derivative by that can be had."""
        return self.output is not None and self.output._version != self._bound.version

    @property
    def _nodes(self) -> int:
        return self._bound.nodes

    @property
    def _values(self) -> Mapping[str, Tensor]:
        return self._bound.values

    @property
    def _sums(self) -> Mapping[str, Tensor]:
        return self._bound.sums

    @abstractmethod
    def squared_norms(self, backprops: Tensor) -> Tensor:
        """Of each record's gradient by this layer's parameters, [B, N] float64."""

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        """Add the sum of the records' gradients, each times its weight [B, N], to what was bound."""
        inputs, backprops = self._apart(self._seen(), backprops)
        self._add_products(inputs, backprops if weights is None else self._weighted(backprops, weights))
        self._bound.are_cleared = False

    def _apart(self, inputs: Tensor, backprops: Tensor) -> tuple[Tensor, Tensor]:
        """Both with B in the first dimension."""
        return inputs, backprops

    @abstractmethod
    def _add_products(self, inputs: Tensor, backprops: Tensor) -> None:
        """Add the sum over records, computed as one product where that is cheaper."""

    def _add(self, name: str, gradients: Tensor) -> None:
        """To the sums of one parameter those of all nodes, in any shape of its numbers."""
        total = self._sums[name]
        (total.copy_ if self._bound.are_cleared else total.add_)(gradients.view(total.shape))

    def _weighted(self, backprops: Tensor, weights: Tensor) -> Tensor:
        """Each record's times its weight."""
        return backprops * weights.view(*weights.shape, *[1] * (backprops.dim() - 2))

    def _value(self, name: str) -> Tensor | None:
        """A parameter of all nodes, [N, *shape]; None where the layer has none of that name."""
        if name in self._values:
            return self._values[name]
        return self._frozen[name].expand(self._nodes, *self._frozen[name].shape) if name in self._frozen else None

    def _remember(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Keep what the gradients need. A graph of torch's begins at the first layer that is trained."""
        bound = self._bound
        bound.inputs = inputs.detach()
        if torch.is_grad_enabled():
            bound.output = output if output.requires_grad else output.requires_grad_()
            bound.version = output._version
        return output

    def _seen(self) -> Tensor:
        """What went in; float32, or numbers of tokens."""
        inputs = self._bound.inputs
        if inputs is None:
            raise ValueError("a gradient is asked for before a forward pass")
        return inputs.float() if inputs.is_floating_point() else inputs


class RecordwiseLayer(StackedLayer):
    """A layer whose records' gradients are computed one beside the other for their norms, and kept where they fit."""

    def squared_norms(self, backprops: Tensor) -> Tensor:
        """See StackedLayer."""
        inputs, backprops = self._apart(self._seen(), backprops)
        at_once = max(1, HELD // (self._nodes * self._values_of_record()))
        if at_once >= len(inputs):
            self._bound.kept = self._gradients(inputs, backprops)
            return self._squared(self._bound.kept)
        parts = zip(torch.split(inputs, at_once), torch.split(backprops, at_once), strict=True)
        return torch.cat([self._squared(self._gradients(*part)) for part in parts])

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        """See StackedLayer."""
        if not self._bound.kept or weights is None:
            return super().add_sums(backprops, weights)
        by_node = weights.t().unsqueeze(1)  # [N, 1, B]
        for name, gradients in self._bound.kept.items():  # [B, N, P]
            self._add(name, torch.bmm(by_node, gradients.transpose(0, 1)))
        self._bound.are_cleared = False
        return None

    @abstractmethod
    def _gradients(self, inputs: Tensor, backprops: Tensor) -> dict[str, Tensor]:
        """Each record's gradient by each trained parameter, [B, N, P]."""

    def _add_products(self, inputs: Tensor, backprops: Tensor) -> None:
        for name, gradients in self._gradients(inputs, backprops).items():
            self._add(name, gradients.sum(dim=0))

    def _squared(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([squared_lengths(part) for part in gradients.values()]).sum(dim=0)

    def _values_of_record(self) -> int:
        return sum(values[0].numel() for values in self._values.values())


def squared_lengths(vectors: Tensor) -> Tensor:
    """Of the vectors in the last dimension, in float64: squares of float32 overflow and underflow."""
    return lengths(vectors).square()


def lengths(vectors: Tensor) -> Tensor:
    """Of the vectors in the last dimension, float64.

    Of long ones by pieces, each in float32: half the time. A piece rounds by less than clipping's guard, 32 times 2^-24
    at worst; what underflows there is far below the guard's absolute part; what overflows is done again.
    """
    if vectors.shape[-1] >= _LONG and vectors.shape[-1] % _PIECE == 0:
        pieces = torch.linalg.vector_norm(vectors.reshape(*vectors.shape[:-1], -1, _PIECE), dim=-1)
        by_pieces = lengths(pieces)
        if bool(torch.isfinite(by_pieces.sum())):
            return by_pieces
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return found
