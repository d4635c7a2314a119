"""Trunk: the convolutional part of a chain, passed on a processor by units: a few nodes with nearly as many records.

A unit's values lie wide (see convolution.py). They stay near from one stage to the next, and little of what fills short
batches is convolved (of five batches of twenty, drawn by chance, a fifth would be). What a later pool drops at the edge
of a plane is not computed either, where it is finite: it has no part in the outputs, nor in the gradients.

A kernel's gradients are taken on the way back, while a unit's values are near: the sums over a node's records, or where
they are clipped, each record's own. Which nodes form a unit follows from how many records each has drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .chain import CHANNELWISE, ELEMENTWISE, PLANE
from .convolution import StackedConvolution
from .frequencies import convolved
from .kernel_gradients import KernelGradients, kernel_gradients
from .layers import StackedGroupNorm
from .modules import BY_HAND, Back, by_torch, pair, relu_in_place

# How many times as many records the longest of a unit may have as its shortest (measured).
_SPREAD = 1.3
# Stages that keep nothing of what they give.
_FORGETFUL = (StackedConvolution, nn.MaxPool2d, nn.AvgPool2d)

Steps = list[tuple[torch.dtype, Back]]  # back, in the order in which they were gone forward


def trunk_end(stages: Sequence[nn.Module], start: int, values: Tensor) -> int:
    """One past the last stage of the trunk that begins at `start` with values [B, ...]; `start` where none does.

    A norm of groups between convolutions is trained wide (layers.py), so with one of them there is no trunk.
    """
    if values.device.type != "cpu" or values.dim() != PLANE or not _is_plain_convolution(stages[start]):
        return start
    if any(isinstance(stage, StackedGroupNorm) for stage in stages):
        return start
    belongs = [type(stage) in CHANNELWISE or _is_plain_convolution(stage) for stage in stages[start:]]
    end = start + (belongs.index(False) if False in belongs else len(belongs))
    is_flattened = end < len(stages) and _is_whole_flatten(stages[end])
    return end + 1 if is_flattened else end


class Trunk:
    """One pass of some nodes' batch, of which `real` [B, N] says what is more than filling.

    `is_continued`: whether derivatives by its inputs are wanted. `by_record`: whether sums will be asked with weights.
    """

    def __init__(self, stages: Sequence[nn.Module], real: Tensor, *, is_continued: bool, by_record: bool) -> None:
        self._is_flattened = _is_whole_flatten(stages[-1])
        self._stages = stages[:-1] if self._is_flattened else stages
        self._is_continued = is_continued
        longest = (real * torch.arange(1, len(real) + 1).unsqueeze(1)).amax(dim=0)
        self._units = units_of(longest.tolist())
        layers = {place: stage for place, stage in enumerate(stages) if isinstance(stage, StackedConvolution)}
        self._gradients = {
            place: kernel_gradients(layer, real.shape[1], len(real), by_record=by_record)
            for place, layer in layers.items()
        }
        self._steps: list[Steps] = []  # of each unit
        self._taken = self._given = real.shape

    @property
    def found(self) -> list[KernelGradients]:
        """After the way back: what each convolution adds."""
        return list(self._gradients.values())

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, N, C, H, W] -> [N, B, ...], zeros where a batch is filled."""
        self._taken = inputs.shape
        planes = self._cropped(inputs)
        outputs = [self._passed(unit, _widened(planes[: unit.longest], unit)) for unit in self._units]
        _, channels, *plane = outputs[0].shape
        shape = inputs.shape[1], len(inputs), channels // len(self._units[0].nodes), *plane
        whole = outputs[0].new_empty(shape)
        for unit, output in zip(self._units, outputs, strict=True):
            for node, part in zip(unit.nodes, output.chunk(len(unit.nodes), dim=1), strict=True):
                whole[node, : unit.longest] = part
                whole[node, unit.longest :].zero_()
        self._given = whole.shape
        return whole.flatten(2) if self._is_flattened else whole

    def _cropped(self, inputs: Tensor) -> Tensor:
        """What has a part in the outputs; all, where something else is not finite: that shows in the gradients."""
        height, width = used(self._stages, (inputs.shape[3], inputs.shape[4]))
        used_planes = inputs[..., :height, :width]
        if bool(torch.isfinite(inputs.sum())):  # cheaper than of the dropped alone
            return used_planes
        dropped = inputs[..., height:, :].sum() + inputs[..., width:].sum()
        return used_planes if bool(torch.isfinite(dropped)) else inputs

    def back(self, derivatives: Tensor) -> Tensor | None:
        """From derivatives by the outputs [N, B, ...] to those by the inputs, [B, N, C, H, W]."""
        apart = derivatives.reshape(self._given).transpose(0, 1)
        found = [self._gone_back(n, _widened(apart[: unit.longest], unit)) for n, unit in enumerate(self._units)]
        if any(part is None for part in found):
            return None
        whole = derivatives.new_zeros(self._taken)
        for unit, wide in zip(self._units, found, strict=True):
            assert wide is not None
            height, width = wide.shape[2:]
            whole[: unit.longest, unit.nodes, :, :height, :width] = torch.stack(
                wide.chunk(len(unit.nodes), dim=1), dim=1
            )
        return whole

    def _passed(self, unit: "Unit", values: Tensor) -> Tensor:
        steps: Steps = []
        for place, stage in enumerate(self._stages):
            if isinstance(stage, StackedConvolution):
                values, back = self._convolved(stage, place, unit, values)
            elif type(stage) is nn.ReLU and place > 0 and type(self._stages[place - 1]) in _FORGETFUL:
                values, back = relu_in_place(values)
            else:
                values, back = BY_HAND.get(type(stage), by_torch)(stage, values)
            steps.append((values.dtype, back))
        self._steps.append(steps)
        return values

    def _gone_back(self, number: int, derivatives: Tensor) -> Tensor | None:
        found: Tensor | None = derivatives
        steps = self._steps[number]
        while found is not None and steps:
            kind, back = steps.pop()
            found = back(found if found.dtype == kind else found.to(kind))
        return found

    def _convolved(self, layer: StackedConvolution, place: int, unit: "Unit", inputs: Tensor) -> tuple[Tensor, Back]:
        kernel, bias = layer.of_nodes(unit.nodes)
        passed = convolved(layer.geometry, inputs, kernel, len(unit.nodes))
        is_asked = self._is_continued or place > 0

        def back(backprops: Tensor) -> Tensor | None:
            self._gradients[place].take(unit.nodes, passed, backprops)
            return passed.by_inputs(backprops) if is_asked else None

        return passed.output(bias), back


@dataclass(frozen=True, slots=True)
class Unit:
    """Nodes that are passed together, and how many records of each."""

    nodes: list[int]
    longest: int


def units_of(counts: Sequence[int]) -> list[Unit]:
    """Nodes of nearly as many records each, so that few are only filled.

    >>> units_of([20, 26, 18, 0])
    [Unit(nodes=[3], longest=1), Unit(nodes=[2, 0], longest=20), Unit(nodes=[1], longest=26)]
    """
    units: list[list[int]] = []
    for node in sorted(range(len(counts)), key=lambda node: (counts[node], node)):
        if not units or counts[node] > counts[units[-1][0]] * _SPREAD:
            units.append([])
        units[-1].append(node)
    return [Unit(nodes, max(1, counts[nodes[-1]])) for nodes in units]


def used(stages: Sequence[nn.Module], size: tuple[int, int]) -> tuple[int, int]:
    """Of a plane of this size before these stages the height and the width that have a part in what they give.

    >>> used([nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(3, stride=1)], (13, 12))
    (12, 12)
    """
    if not stages:
        return size
    if type(stages[0]) in ELEMENTWISE:
        return used(stages[1:], size)
    window = _window(stages[0])
    if window is None:
        return size
    given = [(length - span) // stride + 1 for length, span, stride in zip(size, *window, strict=True)]
    height, width = used(stages[1:], (given[0], given[1]))
    spans, strides = window
    return (height - 1) * strides[0] + spans[0], (width - 1) * strides[1] + spans[1]


def _window(stage: nn.Module) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """How many places a stage sees at once, and how far apart; None where it sees others than the plane's own."""
    if isinstance(stage, StackedConvolution):
        return (stage.geometry.spans, stage.geometry.stride) if stage.geometry.padding == (0, 0) else None
    if type(stage) is nn.MaxPool2d and not stage.ceil_mode and pair(stage.padding) == (0, 0):
        lengths, dilation = pair(stage.kernel_size), pair(stage.dilation)
        spans = dilation[0] * (lengths[0] - 1) + 1, dilation[1] * (lengths[1] - 1) + 1
        return spans, pair(stage.stride)
    if type(stage) is nn.AvgPool2d and not stage.ceil_mode and pair(stage.padding) == (0, 0):
        return pair(stage.kernel_size), pair(stage.stride)
    return None


def _widened(planes: Tensor, unit: Unit) -> Tensor:
    """Those of a unit of [B, N, C, H, W] as [B, n * C, H, W], channels-last in memory, which its strides say."""
    shape = len(planes), len(unit.nodes) * planes.shape[2], *planes.shape[3:]
    wide = torch.empty(shape, dtype=planes.dtype, memory_format=torch.channels_last)
    for node, part in zip(unit.nodes, wide.chunk(len(unit.nodes), dim=1), strict=True):
        part.copy_(planes[:, node])
    return wide


def _is_plain_convolution(stage: nn.Module) -> bool:
    return isinstance(stage, StackedConvolution) and stage.knows_derivative and not stage.is_flat


def _is_whole_flatten(stage: nn.Module) -> bool:
    return type(stage) is nn.Flatten and (stage.start_dim, stage.end_dim) == (1, -1)
