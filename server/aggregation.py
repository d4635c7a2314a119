"""The weighted average of updates as a running sum: one model in memory, however many nodes answer, in whatever order.

Floating-point addition depends on its order, and replies arrive in any. So each term is first rounded to a multiple
of `QUANTUM`; sums of such multiples are exact in doubles as long as they stay below `EXACT_BELOW`, and exact sums do
not depend on their order (Demmel and Nguyen 2013, "Fast Reproducible Floating-Point Summation"). One seed, one model,
on one machine or on many. The price is an absolute error of QUANTUM / 2 in a term, far below a float32's own.

That holds for values below `PLAIN_BELOW`: terms are values times shares, of which the sum is at most 1, so that no
partial sum leaves the exact range. Larger values, as of a model that diverges or of a node that lies, are added up
apart: one more sum for every 2^16 in magnitude, with a quantum as much coarser (2^-35 of a value, or less). Each of
these sums is exact for the same reason; they are put together in one order, when all is there. So the order of replies
shows for no update that is finite, whatever its magnitude.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..privacy.parameters import Array, Parameters

QUANTUM = 2.0**-40
EXACT_BELOW = QUANTUM * 2.0**52
# Adding and subtracting this rounds a double to a multiple of QUANTUM, for terms below EXACT_BELOW / 4.
ROUNDING = 1.5 * EXACT_BELOW
PLAIN_BELOW = EXACT_BELOW / 4
_PLAIN_BITS, _RANGE_BITS = 10, 16  # 2^10 is PLAIN_BELOW; each further range reaches 2^16 times as far
_BLOCK = 2**16  # values at a time: the temporaries stay in cache, and memory stays at two updates


class HeldUpdates(Protocol):
    """Updates that lie where they were made, of which nobody needs more than their weighted sum (a simulation's).

    All their values are below PLAIN_BELOW in magnitude: an update that has others is handed over, and added here.
    """

    def add(self, node_id: int, share: float) -> None:
        """The update that this node has just answered with counts, times its share."""
        ...

    def total(self) -> Mapping[str, NDArray[np.float64]] | None:
        """The sum of all that were added, flat, each term rounded as above; None where there was none.

        They are forgotten.
        """
        ...


class RunningAverage:
    """An average of updates shaped like `model`, weighted by whole numbers of which `total_weight` is the sum expected.

    Memory: 8 bytes a parameter, twice that of the float32 model; and where values are large, 8 more for each range
    that they are in, of which there are eight. `held`: updates that are added where they lie.
    """

    def __init__(self, model: Parameters, total_weight: int, held: HeldUpdates | None = None) -> None:
        self._held = held
        self._shapes = {name: array.shape for name, array in model.items()}
        self._sums = {name: np.zeros(array.size, dtype=np.float64) for name, array in model.items()}
        self._large: dict[str, dict[int, NDArray[np.float64]]] = {name: {} for name in model}  # by range, from 1
        self._total_weight = total_weight
        self._weight = 0

    def add(self, update: Parameters, weight: int) -> None:
        """Add an update, already checked to have the model's names and shapes and only finite values."""
        share = weight / self._total_weight
        for name in self._sums:
            self._add_scaled(name, update[name].reshape(-1), share)
        self._weight += weight

    def add_held(self, node_id: int, weight: int) -> None:
        """Add the update of a node that is held elsewhere, checked there: the same terms, in one sum."""
        if self._held is None:
            raise ValueError("no updates are held elsewhere")
        self._held.add(node_id, weight / self._total_weight)
        self._weight += weight

    def result(self) -> Iterator[tuple[str, Array]]:
        """The average, float32, array by array in the model's order of names; each sum is given back on the way."""
        if self._weight == 0:
            raise ValueError("an average of nothing")
        for name, part in ((self._held.total() if self._held else None) or {}).items():
            self._sums[name] += part
        share = self._weight / self._total_weight
        return ((name, self._averaged(name, shape, share)) for name, shape in self._shapes.items())

    def _add_scaled(self, name: str, values: Array, share: float) -> None:
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            part = values[block]
            if max(part.max(), -part.min()) < PLAIN_BELOW:
                _add_rounded(self._sums[name][block], part, share, ROUNDING)
                continue
            ranges = _ranges_of(part)
            for number in np.unique(ranges).tolist():
                of_range = np.where(ranges == number, part, np.float32(0))
                rounding = math.ldexp(ROUNDING, _RANGE_BITS * number)
                _add_rounded(self._sum_of(name, number)[block], of_range, share, rounding)

    def _sum_of(self, name: str, number: int) -> NDArray[np.float64]:
        """Of the values in a range; a page of it that stays zero takes no memory."""
        if number == 0:
            return self._sums[name]
        large = self._large[name]
        if number not in large:
            large[number] = np.zeros(self._sums[name].size, dtype=np.float64)
        return large[number]

    def _averaged(self, name: str, shape: tuple[int, ...], share: float) -> Array:
        total = self._sums.pop(name)
        for _, part in sorted(self._large.pop(name).items()):
            total += part
        total /= share
        return total.astype(np.float32).reshape(shape)


def _ranges_of(values: Array) -> NDArray[np.int32]:
    """The range that each value is in by its magnitude: 0 below PLAIN_BELOW, k below 2^(16 k) times that."""
    exponents = np.frexp(values)[1]  # each value is below 2 to this
    ranges: NDArray[np.int32] = np.maximum(0, -((_PLAIN_BITS - exponents) // _RANGE_BITS))
    return ranges


def _add_rounded(total: NDArray[np.float64], values: Array, share: float, rounding: float) -> None:
    term = values.astype(np.float64)
    term *= share
    term += rounding
    term -= rounding
    total += term
