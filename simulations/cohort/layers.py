"""Linear, embedding and normalising layers of N nodes at once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...client.clipping import sum_rounding
from .stacked import RecordwiseLayer, StackedLayer, lengths, squared_lengths
from .unsupported import UnsupportedError, described

# Values of a matrix below which a product is summed apart before it is added: BLAS adds small ones up in the matrix
# itself, and rounds each time at its size.
_SUMMED_APART = 1024


class StackedLinear(RecordwiseLayer):
    """[B * N, *, in] -> [B * N, *, out]. Where a record passes once, its norm is a product of two (Goodfellow 2015).

    `adds_rounding`: over a sequence add to a norm what rounding can (client/gradients.py does so in mode ghost).
    """

    def __init__(self, layer: nn.Linear, adds_rounding: bool) -> None:
        super().__init__(layer)
        self._adds_rounding = adds_rounding

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        nodes, self._bound.is_by_node = self._nodes, False
        apart = inputs.reshape(len(inputs) // nodes, nodes, -1, inputs.shape[-1])  # [B, N, T, in]
        output = self._remember(apart, self._product(_by_node(apart)))  # [N, B * T, out]
        folded = output.view(nodes, apart.shape[0], apart.shape[2], -1).transpose(0, 1)
        return folded.reshape(*inputs.shape[:-1], output.shape[-1])

    def by_node(self, inputs: Tensor) -> Tensor:
        """[N, B, in] -> [N, B, out]."""
        bound = self._bound
        bound.inputs, bound.is_by_node = inputs, True
        return self._product(inputs)

    def derivative(self, backprops: Tensor) -> Tensor:
        """By what went in, from that by what came out: [N, B, out] -> [N, B, in]."""
        weight = self._value("weight")
        assert weight is not None
        return torch.bmm(backprops, weight)

    def _product(self, by_node: Tensor) -> Tensor:
        weight, bias = self._value("weight"), self._value("bias")
        assert weight is not None
        turned = weight.transpose(1, 2)
        return torch.bmm(by_node, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), by_node, turned)

    def squared_norms(self, backprops: Tensor) -> Tensor:
        """See StackedLayer."""
        if self._bound.is_by_node:
            by_node = squared_lengths(backprops)
            of_inputs = squared_lengths(self._seen()) if "weight" in self._values else torch.zeros_like(by_node)
            return by_node.mul_(of_inputs.add_(1.0) if "bias" in self._values else of_inputs).t()
        if self._seen().shape[2] > 1:
            return super().squared_norms(backprops)
        inputs, backprops = self._apart(self._seen(), backprops)
        by_output = squared_lengths(backprops.squeeze(2))
        total = torch.zeros_like(by_output)
        if "weight" in self._values:
            total += by_output * squared_lengths(inputs.squeeze(2))
        return total + by_output if "bias" in self._values else total

    def add_sums(self, backprops: Tensor, weights: Tensor | None = None) -> None:
        """See StackedLayer."""
        if not self._bound.is_by_node:
            return super().add_sums(backprops, weights)
        self._add_by_node(self._seen(), backprops if weights is None else backprops * weights.t().unsqueeze(2))
        self._bound.are_cleared = False
        return None

    def _apart(self, inputs: Tensor, backprops: Tensor) -> tuple[Tensor, Tensor]:
        count, nodes, length, _ = inputs.shape
        return inputs, backprops.reshape(nodes, count, length, -1).transpose(0, 1)

    def _gradients(self, inputs: Tensor, backprops: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "weight" in self._values:
            products = torch.bmm(backprops.flatten(0, 1).transpose(1, 2), inputs.flatten(0, 1))
            found["weight"] = products.view(*inputs.shape[:2], -1)
        if "bias" in self._values:
            found["bias"] = backprops.sum(dim=2)
        if self._adds_rounding:
            self._terms = lengths(backprops), lengths(inputs)  # [B, N, T] each
        return found

    def _squared(self, gradients: Mapping[str, Tensor]) -> Tensor:
        if not self._adds_rounding:
            return super()._squared(gradients)
        by_output, by_input = self._terms
        terms = {"weight": by_output * by_input, "bias": by_output}
        norms = [lengths(part) + sum_rounding(terms[name]) for name, part in gradients.items()]
        return torch.stack(norms).square().sum(dim=0)

    def _add_products(self, inputs: Tensor, backprops: Tensor) -> None:
        self._add_by_node(_by_node(inputs), _by_node(backprops))

    def _add_by_node(self, inputs: Tensor, backprops: Tensor) -> None:
        """[N, B, in] and [N, B, out]."""
        if (total := self._sums.get("weight")) is not None:
            if self._bound.are_cleared or total[0].numel() >= _SUMMED_APART:
                total.baddbmm_(backprops.transpose(1, 2), inputs, beta=0.0 if self._bound.are_cleared else 1.0)
            else:
                total.add_(torch.bmm(backprops.transpose(1, 2), inputs))
        if "bias" in self._sums:
            self._add("bias", backprops.sum(dim=1))


class StackedEmbedding(StackedLayer):
    """Token ids [B * N, *] -> [B * N, *, E]. A token that a record holds twice has the sum of both gradients."""

    def __init__(self, layer: nn.Embedding, path: str) -> None:
        super().__init__(layer)
        if layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
            raise UnsupportedError(f"{described(layer, path)} with padding_idx, max_norm, scale_grad_by_freq or sparse")

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        weight = self._values["weight"]
        ids = inputs.reshape(len(inputs) // self._nodes, self._nodes, -1)  # [B, N, T]
        output = self._remember(ids, weight[self._node_of(ids), ids])  # [B, N, T, E]
        return output.reshape(*inputs.shape, weight.shape[-1])

    def squared_norms(self, backprops: Tensor) -> Tensor:
        """See StackedLayer. What falls on one token is summed at the token's first place in the record."""
        ids = self._seen()
        places = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).byte().argmax(dim=-1)  # [B, N, T]
        summed = torch.zeros_like(backprops).scatter_add_(2, places.unsqueeze(-1).expand_as(backprops), backprops)
        return squared_lengths(summed.flatten(2))

    def _add_products(self, inputs: Tensor, backprops: Tensor) -> None:
        sums = self._sums["weight"]
        rows = self._node_of(inputs) * sums.shape[1] + inputs
        total = sums.new_zeros(sums.shape[0] * sums.shape[1], sums.shape[2])
        self._add("weight", total.index_add_(0, rows.flatten(), backprops.flatten(0, 2)))

    def _node_of(self, ids: Tensor) -> Tensor:
        return torch.arange(self._nodes, device=ids.device).view(1, -1, 1)


class StackedLayerNorm(RecordwiseLayer):
    """[B * N, *, *shape] -> the same shape: normalised, then scaled and shifted by each node's own parameters."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__(layer)
        self._shape, self._eps = layer.normalized_shape, layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        normal = functional.layer_norm(inputs, self._shape, eps=self._eps)
        apart = normal.view(len(inputs) // self._nodes, self._nodes, -1, *self._shape).flatten(3)  # [B, N, M, K]
        weight, bias = self._value("weight"), self._value("bias")
        output = apart if weight is None else apart * weight.flatten(1).unsqueeze(1)
        output = output if bias is None else output + bias.flatten(1).unsqueeze(1)
        return self._remember(apart, output).view(inputs.shape)

    def _gradients(self, inputs: Tensor, backprops: Tensor) -> dict[str, Tensor]:
        found = {"weight": (backprops * inputs).sum(dim=2), "bias": backprops.sum(dim=2)}
        return {name: found[name] for name in self._values}


class StackedGroupNorm(RecordwiseLayer):
    """[B * N, C, *] -> the same shape; or wide, [B, N * C, H, W] (see wide.py)."""

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__(layer)
        self._groups, self._eps = layer.num_groups, layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        return self.wide(inputs.reshape(len(inputs) // self._nodes, -1, *inputs.shape[2:])).reshape(inputs.shape)

    def wide(self, inputs: Tensor) -> Tensor:
        """[B, N * C, *] -> the same shape."""
        normal = functional.group_norm(inputs, self._nodes * self._groups, eps=self._eps)
        weight, bias = (self._of_channels(name, inputs.dim()) for name in ("weight", "bias"))
        output = normal if weight is None else normal * weight
        return self._remember(normal, output if bias is None else output + bias)

    def _of_channels(self, name: str, dimensions: int) -> Tensor | None:
        value = self._value(name)
        return None if value is None else value.reshape(1, -1, *[1] * (dimensions - 2))

    def _gradients(self, inputs: Tensor, backprops: Tensor) -> dict[str, Tensor]:
        found = {"weight": backprops * inputs, "bias": backprops}
        return {name: position_sums(found[name], self._nodes) for name in self._values}

    def _weighted(self, backprops: Tensor, weights: Tensor) -> Tensor:
        return weighted_channels(backprops, weights)


def position_sums(values: Tensor, nodes: int) -> Tensor:
    """[B, N * C, *] -> [B, N, C]."""
    summed = values.sum(dim=tuple(range(2, values.dim()))) if values.dim() > 2 else values
    return summed.view(len(values), nodes, -1)


def weighted_channels(values: Tensor, weights: Tensor) -> Tensor:
    """Wide values [B, N * C, *], those of each record times its weight of [B, N]."""
    of_channels = weights.repeat_interleave(values.shape[1] // weights.shape[1], dim=1)
    return values * of_channels.view(*of_channels.shape, *[1] * (values.dim() - 2))


def _by_node(apart: Tensor) -> Tensor:
    """[B, N, T, .] -> [N, B * T, .]; a view where T is 1."""
    return apart.transpose(0, 1).reshape(apart.shape[1], -1, apart.shape[3])
