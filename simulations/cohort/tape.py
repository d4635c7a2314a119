"""Tape: a pass through a chain by hand, forward and back to what each trained layer gave, without torch's own graph.

The layers that cost most know their derivative (linear, convolution), and so do the modules that stand between them
most often; whatever else a chain holds is differentiated by torch, alone. Values lie as each stage takes them fastest:
folded [B * N, ...], wide [B, N * C, H, W] (see convolution.py), or by node [N, B, F]: the same numbers in other orders.
On a processor the convolutional part of a chain is one step of the tape (trunk.py).
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn

from .chain import CHANNELWISE, ELEMENTWISE, PLANE
from .convolution import StackedConvolution, folded, widened
from .kernel_gradients import KernelGradients
from .layers import StackedGroupNorm, StackedLinear
from .modules import BY_HAND, Back, differentiated
from .stacked import StackedLayer
from .trunk import Trunk, trunk_end

Found = list[tuple[StackedLayer | KernelGradients, Tensor]]


class Layout(Enum):
    """In what order values lie."""

    FOLDED = auto()
    WIDE = auto()
    BY_NODE = auto()


class Tape:
    """One pass of a batch, of which `real` [B, N] says what is more than filling.

    `first`: the place of the first trained stage; by what went into it no derivative is computed. `by_record`: whether
    the records' gradients will be weighted.
    """

    def __init__(self, stages: Sequence[nn.Module], first: int, real: Tensor, *, by_record: bool) -> None:
        self._stages = stages
        self._first = first
        self._real = real
        self._nodes = real.shape[1]
        self._by_record = by_record
        self._backs: list[tuple[torch.dtype, Back]] = []
        self._found: Found = []
        self.ends_by_node = False

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, N, ...] -> [B * N, ...], or [N, B, F] where it `ends_by_node`; call it where torch records nothing."""
        values, layout, begun = self._begun(inputs)
        ended = begun
        for place, stage in enumerate(self._stages[begun:], start=begun):
            if place < ended:
                continue
            ended = trunk_end(self._stages, place, values) if layout is Layout.FOLDED else place
            if place < ended:
                values, layout = self._through_trunk(values, place, ended)
                continue
            wanted = _wanted(stage, values, layout)
            values, layout = self._laid(values, layout, wanted), wanted
            values = self._through(stage, values, layout, place > self._first)
            if place < self._first:
                self._backs.clear()
        self.ends_by_node = layout is Layout.BY_NODE
        return values if self.ends_by_node else self._laid(values, layout, Layout.FOLDED)

    def _begun(self, inputs: Tensor) -> tuple[Tensor, Layout, int]:
        """A batch as the first stage takes it, and at which stage to begin."""
        first = self._stages[0]
        if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1) and inputs.dim() > 2:
            return inputs.transpose(0, 1).flatten(2), Layout.BY_NODE, 1
        if isinstance(first, StackedLinear) and inputs.dim() == 3:
            return inputs.transpose(0, 1), Layout.BY_NODE, 0
        return inputs.flatten(0, 1), Layout.FOLDED, 0

    def back(self, derivatives: Tensor) -> Found:
        """From the loss's derivatives by the outputs: those by what each trained layer gave. Once."""
        found: Tensor | None = derivatives
        while found is not None and self._backs:
            kind, back = self._backs.pop()
            found = back(found.to(kind))
        return self._found

    def _laid(self, values: Tensor, layout: Layout, wanted: Layout) -> Tensor:
        if layout is not wanted and layout is not Layout.FOLDED:
            fold, unfold = _CHANGES[layout]
            values = self._changed(values, fold, unfold)
        if layout is not wanted and wanted is not Layout.FOLDED:
            fold, unfold = _CHANGES[wanted]
            values = self._changed(values, unfold, fold)
        return values

    def _changed(self, values: Tensor, change: "Change", undo: "Change") -> Tensor:
        self._backs.append((values.dtype, lambda derivatives: undo(derivatives, self._nodes)))
        return change(values, self._nodes)

    def _through_trunk(self, values: Tensor, start: int, end: int) -> tuple[Tensor, Layout]:
        """[B * N, C, H, W] -> [N, B, F], or [B * N, ...] where a plane comes out."""
        trunk = Trunk(self._stages[start:end], self._real, is_continued=start > self._first, by_record=self._by_record)
        output = trunk.forward(values.view(-1, self._nodes, *values.shape[1:]))
        is_flat = output.dim() == 3

        def back(derivatives: Tensor) -> Tensor | None:
            by_node = derivatives if is_flat else derivatives.view(-1, self._nodes, *output.shape[2:]).transpose(0, 1)
            found = trunk.back(by_node)
            self._found += [(gradients, derivatives) for gradients in trunk.found]
            return None if found is None else found.flatten(0, 1)

        self._backs.append((output.dtype, back))
        return (output, Layout.BY_NODE) if is_flat else (output.transpose(0, 1).flatten(0, 1), Layout.FOLDED)

    def _through(self, stage: Any, values: Tensor, layout: Layout, is_continued: bool) -> Tensor:
        if isinstance(stage, StackedLinear) and layout is Layout.BY_NODE:
            return self._layer(stage, stage.by_node(values), is_continued)
        if isinstance(stage, StackedConvolution) and layout is Layout.WIDE and stage.knows_derivative:
            return self._layer(stage, stage.wide(values), is_continued)
        by_hand = BY_HAND.get(type(stage))
        if by_hand is None:
            return self._by_torch(stage, values, layout, is_continued)
        output, back = by_hand(stage, values)
        self._backs.append((output.dtype, back))
        return output

    def _layer(self, layer: StackedLinear | StackedConvolution, output: Tensor, is_continued: bool) -> Tensor:
        def back(backprops: Tensor) -> Tensor | None:
            self._found.append((layer, backprops))
            return layer.derivative(backprops) if is_continued else None

        self._backs.append((output.dtype, back))
        return output

    def _by_torch(self, stage: Any, values: Tensor, layout: Layout, is_continued: bool) -> Tensor:
        """A stage that torch differentiates, a trained layer among them."""
        taken = values.detach()
        if is_continued:
            taken.requires_grad_()
        with torch.enable_grad():
            output: Tensor = stage.wide(taken) if _takes_wide(stage, layout) else stage(taken)

        def back(derivatives: Tensor) -> Tensor | None:
            layer = stage if isinstance(stage, StackedLayer) else None
            by_input, by_layer = _derived(output, taken, layer, derivatives)
            if layer is not None and by_layer is not None:
                self._found.append((layer, by_layer))
            return by_input

        self._backs.append((output.dtype, back))
        return output.detach()


def _derived(
    output: Tensor, taken: Tensor, layer: StackedLayer | None, derivatives: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives by what a stage took and by what the layer in it gave, where they are wanted."""
    gave = layer.output if layer is not None else None
    wanted = [tensor for tensor in (taken, gave) if tensor is not None and tensor.requires_grad]
    if not wanted or not output.requires_grad:
        return None, None
    parts = differentiated(output, derivatives, wanted)
    by_input = parts.pop(0) if taken.requires_grad else None
    return by_input, parts[0] if parts else None


def _wanted(stage: nn.Module, values: Tensor, layout: Layout) -> Layout:
    """In which order a stage takes values that lie in another."""
    if isinstance(stage, StackedConvolution) and values.dim() == PLANE:
        return Layout.WIDE
    if isinstance(stage, StackedLinear) and (layout is Layout.BY_NODE or values.dim() == 2):
        return Layout.BY_NODE
    if layout is Layout.WIDE and (type(stage) in CHANNELWISE or isinstance(stage, StackedGroupNorm)):
        return layout
    return layout if layout is Layout.BY_NODE and type(stage) in ELEMENTWISE else Layout.FOLDED


def _takes_wide(stage: nn.Module, layout: Layout) -> bool:
    return layout is Layout.WIDE and isinstance(stage, StackedConvolution | StackedGroupNorm)


def _by_node(values: Tensor, nodes: int) -> Tensor:
    """[B * N, F] -> [N, B, F]."""
    return values.reshape(-1, nodes, values.shape[1]).transpose(0, 1)


def _from_nodes(values: Tensor, nodes: int) -> Tensor:
    """[N, B, F] -> [B * N, F]."""
    return values.transpose(0, 1).reshape(-1, values.shape[2])


Change = Callable[[Tensor, int], Tensor]

_CHANGES: dict[Layout, tuple[Change, Change]] = {  # into folded, and out of it
    Layout.WIDE: (folded, widened),
    Layout.BY_NODE: (_from_nodes, _by_node),
}
