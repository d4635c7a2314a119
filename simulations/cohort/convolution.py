"""Convolutions of N nodes at once: one grouped convolution, a group (or the layer's own groups) for each node.

It works on wide tensors, [B, N * C, H, W] in memory order channels-last, where oneDNN's grouped convolutions and
torch's pools are fastest (measured against a loop over nodes, and against unfolding and a batched product). The
records' gradients are one more grouped convolution, with a group for each record, or a product where kernels are small.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import position_sums, weighted_channels
from .places import Geometry, by_groups, in_order, windows_of
from .stacked import RecordwiseLayer

# Values under a kernel up to which copying the windows is cheaper than a convolution with a group for each record
# (measured: 9 values half the time, 144 values a fifth more).
_FEW = 32


class StackedConvolution(RecordwiseLayer):
    """[B * N, C, *] -> [B * N, O, *], of one dimension or two; or wide."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer)
        self.is_flat = isinstance(layer, nn.Conv1d)
        is_plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        padding = _both(layer.padding, 0) if is_plain else (0, 0)  # type: ignore[arg-type]
        self.geometry = Geometry(
            _both(layer.kernel_size, 1), _both(layer.stride, 1), padding, _both(layer.dilation, 1), layer.groups
        )
        self._padded_before = None if is_plain else list(layer._reversed_padding_repeated_twice)
        self._padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        flat = inputs.unsqueeze(2) if self.is_flat else inputs
        output = folded(self.wide(widened(flat, self._nodes)), self._nodes)
        return output.squeeze(2) if self.is_flat else output

    def wide(self, inputs: Tensor) -> Tensor:
        """[B, N * C, H, W] -> [B, N * O, H', W']."""
        if self._padded_before is not None:
            inputs = _padded(inputs, self._padded_before, self._padding_mode, self.is_flat)
        bias = self._value("bias")
        flat = None if bias is None else bias.reshape(-1)
        output = self.geometry.convolved(inputs, self._kernel(), flat, self._nodes)
        # Of one channel torch cannot tell the order, and pools are slow in the other one.
        return self._remember(inputs, output.contiguous(memory_format=torch.channels_last))

    @property
    def knows_derivative(self) -> bool:
        """Whether `derivative` can be asked: not where something is padded before it is convolved."""
        return self._padded_before is None

    def derivative(self, backprops: Tensor) -> Tensor:
        """By what went in, from that by what came out: [B, N * O, H', W'] -> [B, N * C, H, W]."""
        inputs, kernel = (values.to(backprops.dtype) for values in (self._seen(), self._kernel()))
        return self.geometry.by_inputs(backprops, inputs, kernel, self._nodes)

    def of_nodes(self, nodes: list[int]) -> tuple[Tensor, Tensor | None]:
        """Some nodes' kernels [n * O, C / groups, kh, kw], and their biases [n * O]."""
        weight, bias = (self._of_nodes(name, nodes) for name in ("weight", "bias"))
        assert weight is not None
        return weight, bias

    def _of_nodes(self, name: str, nodes: list[int]) -> Tensor | None:
        value = self._value(name)
        if value is None:
            return None
        return value[nodes[0]] if len(nodes) == 1 else torch.cat([value[node] for node in nodes])

    @property
    def sizes(self) -> dict[str, int]:
        """Values of each trained parameter."""
        return {name: values[0].numel() for name, values in self._values.items()}

    def shaped(self, name: str, gradients: Tensor) -> Tensor:
        """A parameter's gradients [N, P], the kernel's as `record_gradients` orders them, in the parameter's shape."""
        if name == "weight":
            gradients = in_order(self.geometry, gradients, self.of_nodes([0])[0])
        return gradients.view(self._sums[name].shape)

    def put(self, sums: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Add sums over records that were computed elsewhere: by the name of a parameter, then by node, [*shape]."""
        if not all(len(sums.get(name, ())) == self._nodes for name in self.trained):
            self.settle()
        is_cleared = self._bound.are_cleared
        for name, of_nodes in sums.items():
            for node, total in of_nodes.items():
                row = self._sums[name][node]
                (row.copy_ if is_cleared else row.add_)(total)
        self._bound.are_cleared = False

    def _kernel(self) -> Tensor:
        """[N * O, C / groups, kh, kw]."""
        weight = self._value("weight")
        assert weight is not None
        kernel = weight.unsqueeze(3) if self.is_flat else weight  # [N, O, C / groups, kh, kw]
        return kernel.reshape(-1, *kernel.shape[2:])

    def _gradients(self, inputs: Tensor, backprops: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "weight" in self._values:
            by_windows = self.geometry.groups == 1 and self._kernel()[0].numel() <= _FEW
            found["weight"] = (self._by_windows if by_windows else self._by_records)(inputs, backprops)
        if "bias" in self._values:
            found["bias"] = position_sums(backprops, self._nodes)
        return found

    def _by_records(self, inputs: Tensor, backprops: Tensor) -> Tensor:
        """The records of all nodes as groups of one convolution."""
        count = len(inputs)
        gradients = by_groups(self.geometry, inputs, backprops, self._kernel(), count * self._nodes)
        return gradients.view(count, self._nodes, -1)

    def _by_windows(self, inputs: Tensor, backprops: Tensor) -> Tensor:
        """A product of the windows [B, K, L] under the kernel's L places, and what came out there [B, L, O]."""
        windows = self._windows(inputs)  # [B, N, K, L]
        places = backprops.permute(0, 2, 3, 1).reshape(len(backprops), windows.shape[3], self._nodes, -1)
        products = [torch.bmm(windows[:, node], places[:, :, node]) for node in range(self._nodes)]
        return torch.stack(products, dim=1).transpose(2, 3).flatten(2)

    def _windows(self, inputs: Tensor) -> Tensor:
        """[B, N * C, H, W] -> [B, N, C * kh * kw, H' * W']; torch's unfold is slower."""
        planes = windows_of(self.geometry, inputs, torch.contiguous_format)
        windows = planes.permute(0, 1, 4, 5, 2, 3).contiguous()  # [B, N * C, kh, kw, H', W']
        return windows.view(len(inputs), self._nodes, -1, windows.shape[4] * windows.shape[5])

    def _add_products(self, inputs: Tensor, backprops: Tensor) -> None:
        if "weight" in self._sums:
            kernel = self.geometry.by_kernel(backprops, inputs, self._kernel(), self._nodes)
            self._add("weight", kernel.contiguous())
        if "bias" in self._sums:
            self._add("bias", backprops.sum(dim=(0, 2, 3)))

    def _weighted(self, backprops: Tensor, weights: Tensor) -> Tensor:
        return weighted_channels(backprops, weights)


def widened(inputs: Tensor, nodes: int) -> Tensor:
    """[B * N, C, H, W] -> [B, N * C, H, W], channels-last in memory."""
    wide = inputs.reshape(len(inputs) // nodes, -1, *inputs.shape[2:])
    return wide.contiguous(memory_format=torch.channels_last)


def folded(inputs: Tensor, nodes: int) -> Tensor:
    """[B, N * C, H, W] -> [B * N, C, H, W]."""
    return inputs.contiguous().view(len(inputs) * nodes, -1, *inputs.shape[2:])


def _both(numbers: tuple[int, ...], before: int) -> tuple[int, int]:
    """Of a layer's numbers those of two dimensions."""
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (before, numbers[0])


def _padded(inputs: Tensor, around: list[int], mode: str, is_flat: bool) -> Tensor:
    """As the layer pads before it convolves: unevenly, or by a mode that a convolution does not know."""
    if is_flat and mode != "constant":  # torch wants a line there, not a plane
        return functional.pad(inputs.squeeze(2), around, mode=mode).unsqueeze(2)
    return functional.pad(inputs, around, mode=mode)
