"""Tape: a pass through a chain by hand, forward and back to what each trained layer gave, without torch's own graph.

The layers that cost most know their derivative (linear, convolution), and so do the modules that stand between them
most often; whatever else a chain holds is differentiated by torch, alone. Values lie as each stage takes them fastest:
folded [B * N, ...], wide [B, N * C, H, W] (see convolution.py), or by node [N, B, F]: the same numbers in other orders.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn

from .chain import CHANNELWISE, ELEMENTWISE, PLANE
from .convolution import StackedConvolution, folded, widened
from .layers import StackedGroupNorm, StackedLinear
from .stacked import StackedLayer

# From derivatives by what a stage gave to those by what it took; None where nobody asks for them.
Back = Callable[[Tensor], Tensor | None]
Found = list[tuple[StackedLayer, Tensor]]


class Layout(Enum):
    """In what order values lie."""

    FOLDED = auto()
    WIDE = auto()
    BY_NODE = auto()


class Tape:
    """One pass. `first`: the place of the first trained stage; by what went into it no derivative is computed."""

    def __init__(self, stages: Sequence[nn.Module], first: int, nodes: int) -> None:
        self._stages = stages
        self._first = first
        self._nodes = nodes
        self._backs: list[tuple[torch.dtype, Back]] = []
        self._found: Found = []
        self.ends_by_node = False

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, N, ...] -> [B * N, ...], or [N, B, F] where it `ends_by_node`; call it where torch records nothing."""
        values, layout, begun = self._begun(inputs)
        for place, stage in enumerate(self._stages[begun:], start=begun):
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

    def _through(self, stage: Any, values: Tensor, layout: Layout, is_continued: bool) -> Tensor:
        if isinstance(stage, StackedLinear) and layout is Layout.BY_NODE:
            return self._layer(stage, stage.by_node(values), is_continued)
        if isinstance(stage, StackedConvolution) and layout is Layout.WIDE and stage.knows_derivative:
            return self._layer(stage, stage.wide(values), is_continued)
        by_hand = _BY_HAND.get(type(stage))
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
    # By a product: torch imports sympy where it is told `grad_outputs`.
    with torch.enable_grad():
        product = torch.dot(output.flatten(), derivatives.flatten())
    parts = list(torch.autograd.grad(product, wanted, allow_unused=True))
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


def _relu(module: nn.ReLU, values: Tensor) -> tuple[Tensor, Back]:
    output = values.relu()
    return output, lambda derivatives: torch.ops.aten.threshold_backward(derivatives, output, 0)


def _max_pool(module: nn.MaxPool2d, values: Tensor) -> tuple[Tensor, Back]:
    stride = module.stride if module.stride is not None else module.kernel_size
    around = [_pair(number) for number in (module.kernel_size, stride, module.padding, module.dilation)]
    output, places = torch.ops.aten.max_pool2d_with_indices(values, *around, module.ceil_mode)

    def back(derivatives: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            derivatives, values, *around, module.ceil_mode, places
        )
        return found

    return output, back


def _reshaped(module: nn.Module, values: Tensor) -> tuple[Tensor, Back]:
    return module(values), lambda derivatives: derivatives.reshape(values.shape)


def _pair(number: int | tuple[int, ...]) -> list[int]:
    return [number, number] if isinstance(number, int) else list(number)


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
_BY_HAND: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Back]]] = {
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _reshaped,
    nn.Unflatten: _reshaped,
    nn.Identity: _reshaped,
}
