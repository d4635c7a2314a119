"""Trunk: the convolutional part of a chain, passed on a processor node after node.

A node's values fit into a core's cache from one stage to the next, and only its own records are convolved: those that
fill a short batch are left out (a fifth, where batches of twenty are drawn). What a later pool drops at the edge of a
plane is not computed either: it has no part in the outputs, and none in the gradients.

A kernel's gradients are taken on the way back, while a node's values are near: the sums over its records, or where
they are clipped, each record's own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .chain import CHANNELWISE, ELEMENTWISE, PLANE
from .convolution import StackedConvolution
from .kernel_gradients import KernelGradients, kernel_gradients
from .layers import StackedGroupNorm
from .modules import BY_HAND, Back, by_torch, pair, relu_in_place

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
        self._stages = stages
        self._is_continued = is_continued
        longest = (real * torch.arange(1, len(real) + 1).unsqueeze(1)).amax(dim=0)
        self._counts = longest.clamp(min=1).tolist()  # of each node; of one without records, one that only fills
        layers = {place: stage for place, stage in enumerate(stages) if isinstance(stage, StackedConvolution)}
        self._parameters = {place: layer.by_node() for place, layer in layers.items()}
        self._gradients = {
            place: kernel_gradients(layer, real.shape[1], len(real), by_record=by_record)
            for place, layer in layers.items()
        }
        self._steps: list[Steps] = []  # of each node
        self._taken_shape = real.shape

    @property
    def found(self) -> list[KernelGradients]:
        """After the way back: what each convolution adds."""
        return list(self._gradients.values())

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, N, C, H, W] -> [N, B, ...], zeros where a batch is filled."""
        self._taken_shape = inputs.shape
        height, width = used(self._stages, (inputs.shape[3], inputs.shape[4]))
        outputs = []
        for node, count in enumerate(self._counts):
            values = _channels_last(inputs[:count, node, :, :height, :width])
            outputs.append(self._passed(node, values))
        return _side_by_side(outputs, len(inputs))

    def back(self, derivatives: Tensor) -> Tensor | None:
        """From derivatives by the outputs [N, B, ...] to those by the inputs, [B, N, C, H, W]."""
        found = [self._gone_back(node, derivatives[node, :count]) for node, count in enumerate(self._counts)]
        known = [part for part in found if part is not None]
        if not known:
            return None
        count, nodes, *shape = self._taken_shape
        whole = known[0].new_zeros(count, nodes, *shape)
        for node, part in enumerate(found):
            if part is not None:
                whole[: len(part), node, :, : part.shape[2], : part.shape[3]] = part
        return whole

    def _passed(self, node: int, values: Tensor) -> Tensor:
        steps: Steps = []
        for place, stage in enumerate(self._stages):
            if isinstance(stage, StackedConvolution):
                values, back = self._convolved(stage, place, node, values)
            elif type(stage) is nn.ReLU and place > 0 and type(self._stages[place - 1]) in _FORGETFUL:
                values, back = relu_in_place(values)
            else:
                values, back = BY_HAND.get(type(stage), by_torch)(stage, values)
            steps.append((values.dtype, back))
        self._steps.append(steps)
        return values

    def _gone_back(self, node: int, derivatives: Tensor) -> Tensor | None:
        found: Tensor | None = derivatives
        steps = self._steps[node]
        while found is not None and steps:
            kind, back = steps.pop()
            found = back(found if found.dtype == kind else found.to(kind))
        return found

    def _convolved(self, layer: StackedConvolution, place: int, node: int, inputs: Tensor) -> tuple[Tensor, Back]:
        kernel, bias = self._parameters[place][node]
        is_asked = self._is_continued or place > 0

        def back(backprops: Tensor) -> Tensor | None:
            self._gradients[place].take(node, inputs.float(), backprops.float(), kernel)
            if not is_asked:
                return None
            return layer.geometry.by_inputs(backprops, inputs.to(backprops.dtype), kernel.to(backprops.dtype))

        return layer.geometry.convolved(inputs, kernel, bias), back


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


def _channels_last(values: Tensor) -> Tensor:
    """In that order of memory. Of one channel torch cannot tell the order unless its strides say so."""
    if values.shape[1] > 1:
        return values.contiguous(memory_format=torch.channels_last)
    return torch.empty(values.shape, dtype=values.dtype, memory_format=torch.channels_last).copy_(values)


def _side_by_side(outputs: Sequence[Tensor], count: int) -> Tensor:
    """Of each node [b, ...], b up to `count`: [N, count, ...], zeros behind a node's own."""
    whole = outputs[0].new_empty(len(outputs), count, *outputs[0].shape[1:])
    for row, output in zip(whole, outputs, strict=True):
        row[: len(output)] = output
        row[len(output) :].zero_()
    return whole


def _is_plain_convolution(stage: nn.Module) -> bool:
    return isinstance(stage, StackedConvolution) and stage.knows_derivative and not stage.is_flat


def _is_whole_flatten(stage: nn.Module) -> bool:
    return type(stage) is nn.Flatten and (stage.start_dim, stage.end_dim) == (1, -1)
