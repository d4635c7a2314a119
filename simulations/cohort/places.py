"""Places: what a convolution does with those of a plane, in memory order channels-last.

Forward and both derivatives are oneDNN's convolutions, which run near what a core can do; large kernels over small
planes are faster in another way (frequencies.py). The gradients of each record are products of the windows under the
kernel, where these are few values (measured on AVX-512: of 9 values a quarter of the time, of 144 two thirds, of 800 as
long), else one convolution more, with a group for each record.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FEW_CHANNELS = 4  # whose planes are cheaper copied one by one than place by place
_FEW = 256  # values under a kernel
_HELD = 2**22  # values of copied windows at once: 16 MB

_aten: Any = torch.ops.aten  # knows no types


@dataclass(frozen=True, slots=True)
class Geometry:
    """A kernel's height and width, and how it moves over a plane."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def convolved(self, inputs: Tensor, kernel: Tensor, bias: Tensor | None, units: int = 1) -> Tensor:
        """[B, U * C, H, W] -> [B, U * O, H', W'], of as many separate kernels as there are units."""
        settings = self.stride, self.padding, self.dilation
        return functional.conv2d(inputs, kernel, bias, *settings, units * self.groups)

    def by_inputs(self, backprops: Tensor, inputs: Tensor, kernel: Tensor, units: int = 1) -> Tensor:
        """The derivative by what went in, of which only the shape is read."""
        return self._derived(backprops, inputs, kernel, units, by_inputs=True)

    def by_kernel(self, backprops: Tensor, inputs: Tensor, kernel: Tensor, units: int = 1) -> Tensor:
        """The derivative by the kernel, of which only the shape is read."""
        return self._derived(backprops, inputs, kernel, units, by_inputs=False)

    def _derived(self, backprops: Tensor, inputs: Tensor, kernel: Tensor, units: int, *, by_inputs: bool) -> Tensor:
        settings = list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], units * self.groups
        wanted = [by_inputs, not by_inputs, False]
        found = _aten.convolution_backward(backprops, inputs, kernel, None, *settings, wanted)
        return found[0] if by_inputs else found[1]  # type: ignore[no-any-return]

    @property
    def spans(self) -> tuple[int, int]:
        """Places from the first to the last that a kernel sees at once."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1


class Convolved:
    """A convolution that is passed, and how to come back from derivatives by what came out: here place by place.

    Of `units` nodes side by side: inputs [B, U * C, H, W], kernel [U * O, C / groups, kh, kw].
    """

    def __init__(self, geometry: Geometry, inputs: Tensor, kernel: Tensor, units: int) -> None:
        self.geometry = geometry
        self.inputs = inputs
        self.kernel = kernel
        self.units = units

    def output(self, bias: Tensor | None) -> Tensor:
        """[B, U * O, H', W']."""
        return self.geometry.convolved(self.inputs, self.kernel, bias, self.units)

    def by_inputs(self, backprops: Tensor) -> Tensor:
        """The derivative by the inputs, in the precision of `backprops`."""
        kinds = self.inputs.to(backprops.dtype), self.kernel.to(backprops.dtype)
        return self.geometry.by_inputs(backprops, *kinds, self.units)

    def by_kernel(self, backprops: Tensor) -> Tensor:
        """The derivative by the kernel, float32."""
        return self.geometry.by_kernel(backprops.float(), self.inputs.float(), self.kernel, self.units)


def record_gradients(geometry: Geometry, inputs: Tensor, backprops: Tensor, kernel: Tensor, out: Tensor) -> None:
    """Each record's gradient by one node's kernel, [B, P], its numbers in the order that `in_order` undoes."""
    if not by_windows(geometry, kernel):
        out.copy_(by_groups(geometry, inputs, backprops, kernel, len(inputs)))
        return
    places = backprops.permute(0, 2, 3, 1).reshape(len(backprops), -1, backprops.shape[1])  # [B, L, O]
    at_once = max(1, _HELD // (places.shape[1] * kernel[0].numel()))
    for part in zip(*(torch.split(tensor, at_once) for tensor in (inputs, places, out)), strict=True):
        _by_windows(geometry, kernel, *part)


def in_order(geometry: Geometry, gradients: Tensor, kernel: Tensor) -> Tensor:
    """Gradients [N, P] as `record_gradients` gives them, in the order of the kernel's own numbers."""
    channels_out, channels, height, width = kernel.shape
    if not by_windows(geometry, kernel):
        return gradients
    if channels <= FEW_CHANNELS:
        return gradients.view(len(gradients), -1, channels_out).transpose(1, 2).flatten(1)
    return gradients.view(len(gradients), channels_out, height * width, channels).transpose(2, 3).flatten(1)


def by_windows(geometry: Geometry, kernel: Tensor) -> bool:
    """Whether the windows under a kernel are copied for its records' gradients."""
    return geometry.groups == 1 and kernel[0].numel() <= _FEW


def by_groups(geometry: Geometry, inputs: Tensor, backprops: Tensor, kernel: Tensor, records: int) -> Tensor:
    """Each record's gradient, [records, P], as units of one convolution over a batch of one: records of all nodes."""
    one_inputs, one_backprops = (tensor.contiguous().view(1, -1, *tensor.shape[2:]) for tensor in (inputs, backprops))
    kernels = kernel.new_empty(1).expand(len(inputs) * len(kernel), *kernel.shape[1:])
    return geometry.by_kernel(one_backprops, one_inputs, kernels, records).contiguous().view(records, -1)


def _by_windows(geometry: Geometry, kernel: Tensor, inputs: Tensor, places: Tensor, out: Tensor) -> None:
    """Products of windows and of what came out at their places [B, L, O]."""
    count, length, channels_out = places.shape
    if kernel.shape[1] <= FEW_CHANNELS:
        windows = windows_of(geometry, inputs, torch.contiguous_format).permute(0, 1, 4, 5, 2, 3)
        torch.bmm(windows.reshape(count, -1, length), places, out=out.view(count, -1, channels_out))
        return
    windows = windows_of(geometry, inputs, torch.channels_last).permute(0, 2, 3, 4, 5, 1)
    torch.bmm(places.transpose(1, 2), windows.reshape(count, length, -1), out=out.view(count, channels_out, -1))


def windows_of(geometry: Geometry, inputs: Tensor, order: torch.memory_format) -> Tensor:
    """[B, C, H', W', kh, kw], a view of padded inputs in some order of memory."""
    vertical, horizontal = geometry.padding
    planes = functional.pad(inputs, (horizontal, horizontal, vertical, vertical)).contiguous(memory_format=order)
    moves = zip((2, 3), geometry.spans, geometry.stride, geometry.dilation, strict=True)
    for dimension, span, stride, dilation in moves:
        planes = planes.unfold(dimension, span, stride)[..., ::dilation]
    return planes
