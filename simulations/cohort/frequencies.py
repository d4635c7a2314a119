"""Frequencies: a convolution of a large kernel over small planes as a product of matrices for each frequency.

A transform makes a convolution a product, frequency by frequency, and a product over channels for 128 frequencies takes
a seventh of the multiplications that 5 x 5 places under a kernel take for 14 x 14 places (Mathieu, Henaff and LeCun
2014). On such small planes the transforms are products of matrices themselves; they cost as much again.

Frequencies along the height are the odd ones, (f + 1/2) / N: of a real plane exactly half of them are needed, and none
of these is real (Vernet 1971). What wraps around an edge then changes its sign; it is nothing that is asked for, since
a transform is as long as the padded plane without what stands behind it.

With the transforms X, Y and K of inputs, outputs and kernel, all of them matrices, and c = 2 / N, the products are
    y = c Y'(X x * K k),    dx = c X'(Y dy * conj(K k)),    dk = c K'(conj(X x) * Y dy)
where ' is the adjoint, and * a product of matrices of channels at each frequency. They round like convolutions do, but
at the size of a whole plane; what is not finite anywhere in a plane is nowhere finite afterwards.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .places import Convolved, Geometry

# Measured on AVX-512 with 20 records, against oneDNN's three convolutions: 14 x 14 places, 5 x 5 under a kernel, 32
# channels to 64: 4.6 ms for 10.3; 32 to 32: 1.8 times as fast, 16 to 16: 1.3 times. 7 x 7 places, 32 to 32: 1.35 times.
# With 4 records alike or a little faster. 3 x 3 under a kernel: as fast at best. 56 x 56 places: slower.
_SAVED = 12  # multiplications, at least, in place of which there is one at a frequency
_CHANNELS = 16  # inverse of the sum of inverses, in and out
_LONGEST = 32  # frequencies of a side
_HELD = 2**23  # numbers of a kernel at all frequencies: 32 MB

Parts = Sequence[Tensor]  # the real and the imaginary numbers at each frequency, [F, M] each


def convolved(geometry: Geometry, inputs: Tensor, kernel: Tensor, units: int) -> Convolved:
    """A convolution on a processor, in the way that is the faster for planes and kernels of this shape."""
    is_exact = inputs.dtype == kernel.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    height, width = inputs.shape[2:]
    is_fast = is_exact and pays(geometry, (height, width), kernel.shape[1], len(kernel) // units)
    return (ByFrequencies if is_fast else Convolved)(geometry, inputs, kernel, units)


def pays(geometry: Geometry, plane: tuple[int, int], channels: int, channels_out: int) -> bool:
    """Whether frequencies are faster than places; by the shape of a plane and of a kernel alone.

    >>> one = ((1, 1), (2, 2), (1, 1), 1)
    >>> [pays(Geometry((5, 5), *one), (14, 14), *pair) for pair in ((32, 64), (1, 32))]
    [True, False]
    """
    is_wide = channels * channels_out >= _CHANNELS * (channels + channels_out)
    if not is_wide or geometry.stride != (1, 1) or geometry.dilation != (1, 1) or geometry.groups != 1:
        return False
    sides = list(zip(plane, geometry.kernel, geometry.padding, strict=True))
    if any(padding >= length for _, length, padding in sides):
        return False
    frequencies = _lengths(geometry, plane)
    places = math.prod(side + 2 * padding - length + 1 for side, length, padding in sides)
    return (
        max(frequencies) <= _LONGEST
        and places * math.prod(geometry.kernel) >= _SAVED * math.prod(frequencies)
        and channels * channels_out * math.prod(frequencies) <= _HELD
    )


def _lengths(geometry: Geometry, plane: tuple[int, int]) -> tuple[int, int]:
    """Frequencies of each side: an even number along the height."""
    height, width = (side + padding for side, padding in zip(plane, geometry.padding, strict=True))
    return height + height % 2, width


class ByFrequencies(Convolved):
    """Node by node: of stride and dilation 1, without groups, with less padding than a kernel is long; float32.

    What went in, and the derivatives by what came out, are transformed once for two products each.
    """

    def __init__(self, geometry: Geometry, inputs: Tensor, kernel: Tensor, units: int) -> None:
        super().__init__(geometry, inputs, kernel, units)
        height, width = inputs.shape[2:]
        lengths = _lengths(geometry, (height, width))
        vertical, horizontal = geometry.padding
        places = height + 2 * vertical - geometry.kernel[0] + 1, width + 2 * horizontal - geometry.kernel[1] + 1
        self._of_inputs = _transform((height, width), lengths)
        self._of_outputs = _transform(places, lengths)
        self._of_kernel = _transform(geometry.kernel, lengths, geometry.padding)
        self._seen = [self._of_inputs.thrice(part) for part in inputs.chunk(units, dim=1)]
        self._kernels = [self._kernel_at_frequencies(part) for part in kernel.chunk(units)]
        self._derivatives: tuple[Tensor, list[Tensor]] | None = None

    def output(self, bias: Tensor | None) -> Tensor:
        """See Convolved."""
        products = []
        for (turned, unturned), kernel in zip(map(_pairs, self._seen), self._kernels, strict=True):
            product = torch.bmm(unturned, kernel[0])
            products.append(product.baddbmm_(turned, kernel[1]))
        return self._joined(self._of_outputs, products, bias)

    def by_inputs(self, backprops: Tensor) -> Tensor:
        """See Convolved."""
        products = []
        for (turned, unturned), kernel in zip(map(_pairs, self._at_frequencies(backprops)), self._kernels, strict=True):
            product = torch.bmm(unturned, kernel[0].transpose(1, 2))
            products.append(product.baddbmm_(turned, kernel[1].transpose(1, 2), alpha=-1))
        return self._joined(self._of_inputs, products, None)

    def by_kernel(self, backprops: Tensor) -> Tensor:
        """See Convolved."""
        found = []
        for seen, derived in zip(self._seen, self._at_frequencies(backprops), strict=True):
            _, unturned = _pairs(derived)
            products = [torch.bmm(part.transpose(1, 2), unturned) for part in _pairs(seen)]
            planes = self._of_kernel.adjoint([product.flatten(1) for product in reversed(products)])
            found.append(planes.view(*planes.shape[:2], *products[0].shape[1:]).permute(3, 2, 0, 1))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _at_frequencies(self, backprops: Tensor) -> list[Tensor]:
        """Of each node; kept for the next product of the same derivatives."""
        if self._derivatives is None or self._derivatives[0] is not backprops:
            parts = backprops.chunk(self.units, dim=1)
            self._derivatives = backprops, [self._of_outputs.thrice(part) for part in parts]
        return self._derivatives[1]

    def _kernel_at_frequencies(self, kernel: Tensor) -> Parts:
        """[O, C, kh, kw] -> real and imaginary, [F, C, O] each."""
        planes = kernel.permute(2, 3, 1, 0).contiguous()
        return [part.view(-1, *planes.shape[2:]) for part in self._of_kernel.twice(planes.flatten(2))]

    def _joined(self, transform: "_Transform", products: list[Tensor], bias: Tensor | None) -> Tensor:
        """From each node's [F, 2 * B, C] to [B, n * C, H, W], channels-last in memory."""
        count, channels = products[0].shape[1] // 2, products[0].shape[2]
        shape = count, len(products) * channels, *transform.places
        whole = torch.empty(shape, memory_format=torch.channels_last)
        biases = [None] * len(products) if bias is None else bias.view(len(products), -1, 1, 1)
        for product, out, own in zip(products, whole.chunk(len(products), dim=1), biases, strict=True):
            parts = product.view(len(product), 2, -1).unbind(dim=1)
            planes = transform.adjoint(parts).view(*transform.places, count, channels).permute(2, 3, 0, 1)
            if own is None:
                out.copy_(planes)
            else:
                torch.add(planes, own, out=out)
        return whole


def _pairs(turned: Tensor) -> tuple[Tensor, Tensor]:
    """What `thrice` gave, [F, 2 * B, C] each: times i, which is (-imaginary, real), and as it is."""
    count = turned.shape[1] // 3
    return turned[:, : 2 * count], turned[:, count:]


class _Transform:
    """From places to frequencies, along the height and then along the width, and the adjoint of that.

    With `offset` from places that begin before the first, and conjugate: those of a kernel, which moves the other way.
    """

    def __init__(self, places: tuple[int, int], lengths: tuple[int, int], offset: tuple[int, int] | None) -> None:
        self.places = places
        self._lengths = lengths
        sign, starts = (-1, (0, 0)) if offset is None else (1, (-offset[0], -offset[1]))
        cos, sin = _waves(torch.arange(lengths[0] // 2) + 0.5, places[0], starts[0], sign / lengths[0])
        self._vertical = torch.stack([cos, sin], dim=1).flatten(0, 1).float()  # [(f, 2), H]
        cos, sin = _waves(torch.arange(lengths[1]), places[1], starts[1], sign / lengths[1])
        real, imaginary = torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)  # [f, (2, W)]
        self._parts = torch.stack([real, imaginary], dim=1).flatten(0, 1).float()  # [(f, 2), (2, W)]
        self._signed_parts = torch.stack([-imaginary, real, imaginary], dim=1).flatten(0, 1).float()
        self._adjoints = real.t().float().contiguous(), imaginary.t().float().contiguous()
        self._vertical_adjoint = self._vertical.t() * (2 / (lengths[0] * lengths[1]))

    def twice(self, planes: Tensor) -> Parts:
        """[H, W, M] -> [F, M] each."""
        return self._turned(planes, self._parts).view(-1, 2, planes.shape[2]).unbind(dim=1)

    def thrice(self, values: Tensor) -> Tensor:
        """[B, C, H, W] -> [F, 3 * B, C]: each record's -imaginary, real and imaginary numbers."""
        planes = values.permute(2, 3, 0, 1).contiguous().flatten(2)
        return self._turned(planes, self._signed_parts).view(-1, 3 * values.shape[0], values.shape[1])

    def _turned(self, planes: Tensor, horizontal: Tensor) -> Tensor:
        """[H, W, M] -> [f, (f', .), M], with those parts at a frequency that `horizontal` gives."""
        rows = torch.mm(self._vertical, planes.flatten(1)).view(self._lengths[0] // 2, -1, planes.shape[2])
        return torch.bmm(horizontal.expand(len(rows), *horizontal.shape), rows)

    def adjoint(self, parts: Parts) -> Tensor:
        """[F, M] twice -> [H, W, M]; of what is conjugate on the other half of the frequencies the inverse."""
        real, imaginary = (part.view(-1, self._lengths[1], part.shape[1]) for part in parts)
        of_real, of_imaginary = (matrix.expand(len(real), *matrix.shape) for matrix in self._adjoints)
        rows = torch.bmm(of_real, real).baddbmm_(of_imaginary, imaginary)  # [f, (2, W), M]
        planes = torch.mm(self._vertical_adjoint, rows.view(self._lengths[0], -1))
        return planes.view(*self.places, real.shape[2])


@lru_cache(maxsize=64)
def _transform(places: tuple[int, int], lengths: tuple[int, int], offset: tuple[int, int] | None = None) -> _Transform:
    return _Transform(places, lengths, offset)


def _waves(frequencies: Tensor, places: int, start: int, per_place: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi f n times `per_place`, [f, n] float64, of `places` n from `start` on."""
    angles = 2 * math.pi * per_place * torch.outer(frequencies.double(), torch.arange(start, start + places).double())
    return angles.cos(), angles.sin()
