"""Modules without parameters, passed by hand: what each gives, and how to come back from derivatives by that.

Those that stand between trained layers most often know their derivative here; torch differentiates any other, alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# From derivatives by what a module gave to those by what it took; None where nobody asks for them.
Back = Callable[[Tensor], Tensor | None]
Passed = tuple[Tensor, Back]

_aten: Any = torch.ops.aten  # knows no types


def by_torch(module: nn.Module, values: Tensor) -> Passed:
    """Any module that treats each record by itself."""
    taken = values.detach().requires_grad_()
    with torch.enable_grad():
        output: Tensor = module(taken)
    return output.detach(), lambda derivatives: differentiated(output, derivatives, [taken])[0]


def differentiated(output: Tensor, derivatives: Tensor, by: list[Tensor]) -> list[Tensor | None]:
    """From derivatives by an output of torch's to those by some tensors of its graph."""
    if not by or not output.requires_grad:
        return [None] * len(by)
    # By a product: torch imports sympy where it is told `grad_outputs`.
    with torch.enable_grad():
        product = torch.dot(output.flatten(), derivatives.flatten())
    return list(torch.autograd.grad(product, by, allow_unused=True))


def _relu(module: nn.ReLU, values: Tensor) -> Passed:
    output = values.relu()
    return output, lambda derivatives: _aten.threshold_backward(derivatives, output, 0)


def relu_in_place(values: Tensor) -> Passed:
    """Of values, and of derivatives, that nobody reads any more."""
    output = values.relu_()
    return output, lambda derivatives: _aten.threshold_backward(derivatives, output, 0, grad_input=derivatives)


def _tanh(module: nn.Tanh, values: Tensor) -> Passed:
    output = values.tanh()
    return output, lambda derivatives: _aten.tanh_backward(derivatives, output)


def _sigmoid(module: nn.Sigmoid, values: Tensor) -> Passed:
    output = values.sigmoid()
    return output, lambda derivatives: _aten.sigmoid_backward(derivatives, output)


def _max_pool(module: nn.MaxPool2d, values: Tensor) -> Passed:
    settings = [pair(number) for number in (module.kernel_size, module.stride, module.padding, module.dilation)]
    output, places = _aten.max_pool2d_with_indices(values, *settings, module.ceil_mode)
    like = _Like(values)

    def back(derivatives: Tensor) -> Tensor:
        found = like.empty()  # in whose place torch would read no more than the shape of what went in
        return _aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
            derivatives, found, *settings, module.ceil_mode, places, grad_input=found
        )

    return output, back


def _average_pool(module: nn.AvgPool2d, values: Tensor) -> Passed:
    settings = [pair(number) for number in (module.kernel_size, module.stride, module.padding)]
    rest = module.ceil_mode, module.count_include_pad, module.divisor_override
    like = _Like(values)
    output = _aten.avg_pool2d(values, *settings, *rest)
    return output, lambda derivatives: _aten.avg_pool2d_backward(derivatives, like.empty(), *settings, *rest)


def _reshaped(module: nn.Module, values: Tensor) -> Passed:
    like = _Like(values)
    return module(values), like.shaped


class _Like:
    """The shape, kind and order of a tensor, of which no more is kept."""

    def __init__(self, values: Tensor) -> None:
        self._shape, self._kind, self._device = values.shape, values.dtype, values.device
        is_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
        self._order = torch.channels_last if is_last else torch.contiguous_format

    def shaped(self, values: Tensor) -> Tensor:
        return values.reshape(self._shape).contiguous(memory_format=self._order)

    def empty(self) -> Tensor:
        return torch.empty(self._shape, dtype=self._kind, device=self._device, memory_format=self._order)


def pair(number: int | tuple[int, ...]) -> tuple[int, int]:
    """Of a plane's height and width, where one number may stand for both."""
    return (number, number) if isinstance(number, int) else (number[0], number[1])


BY_HAND: dict[type[nn.Module], Callable[[Any, Tensor], Passed]] = {
    nn.ReLU: _relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.Flatten: _reshaped,
    nn.Unflatten: _reshaped,
    nn.Identity: _reshaped,
}
