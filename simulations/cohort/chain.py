"""Chain: modules one after another, as nn.Sequential has them, in the layout in which each is fastest.

From a convolution on, tensors stay wide (see convolution.py) as long as the modules that follow work channel by
channel: the same numbers in another order. A ReLU before a max-pool is moved behind it: both give the same values and
the same derivatives, since a maximum of what a ReLU lets through is what it lets through of the maximum.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .convolution import StackedConvolution, folded, widened
from .layers import StackedGroupNorm, StackedLinear
from .stacked import StackedLayer

# Modules of one value each, and such as also mix the places of one channel.
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Identity)
CHANNELWISE = (*ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
PLANE = 4  # dimensions of [B, C, H, W]


class Chain(nn.Module):
    """[B * N, ...] -> [B * N, ...]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_rearranged(modules))
        self._nodes = 0

    @property
    def first_trained(self) -> int | None:
        """The place of the first trained stage; None where a stage that is no layer holds trained layers."""
        trained = [any(isinstance(part, StackedLayer) for part in stage.modules()) for stage in self.stages]
        alone = [isinstance(stage, StackedLayer) for stage in self.stages]
        return alone.index(True) if trained == alone else None

    @property
    def begins_by_node(self) -> bool:
        """Whether a batch is best read node after node: where vectors, or what is flattened to them, meet products."""
        kinds = [type(stage) for stage in self.stages]
        return kinds[:1] == [StackedLinear] or kinds[:2] == [nn.Flatten, StackedLinear]

    def bind(self, nodes: int) -> None:
        """How many nodes are in a batch."""
        self._nodes = nodes

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        values, is_wide = inputs, False
        for stage in self.stages:
            starts = isinstance(stage, StackedConvolution) and values.dim() == PLANE
            if starts and not is_wide:
                values, is_wide = widened(values, self._nodes), True
            if is_wide and isinstance(stage, StackedConvolution | StackedGroupNorm):
                values = stage.wide(values)
                continue
            if is_wide and type(stage) not in CHANNELWISE:
                values, is_wide = folded(values, self._nodes), False
            values = stage(values)
        return folded(values, self._nodes) if is_wide else values


def _rearranged(modules: Sequence[nn.Module]) -> list[nn.Module]:
    found = list(modules)
    for place in range(len(found) - 1):
        if type(found[place]) is nn.ReLU and _pools_values(found[place + 1]):
            found[place], found[place + 1] = found[place + 1], found[place]
    return found


def _pools_values(module: nn.Module) -> bool:
    """A max-pool whose windows hold values only, so that zeros do not meet the minus infinity of its padding."""
    return type(module) is nn.MaxPool2d and not module.return_indices and module.padding in (0, (0, 0))
