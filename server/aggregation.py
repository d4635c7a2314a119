"""The weighted average of updates as a running sum: one model in memory, however many nodes answer, in whatever order.

Floating-point addition depends on its order, and replies arrive in any. So each term is first rounded to a multiple
of `QUANTUM`; sums of such multiples are exact in doubles as long as they stay below `EXACT_BELOW`, and exact sums do
not depend on their order (Demmel and Nguyen 2013, "Fast Reproducible Floating-Point Summation"). One seed, one model,
on one machine or on many. The price is an absolute error of QUANTUM / 2 in a term, far below a float32's own.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..privacy.parameters import Array, Parameters

QUANTUM = 2.0**-40
EXACT_BELOW = QUANTUM * 2.0**52
# Adding and subtracting this rounds a double to a multiple of QUANTUM, for terms below EXACT_BELOW / 4.
ROUNDING = 1.5 * EXACT_BELOW
_BLOCK = 2**16  # values at a time: the temporaries stay in cache, and memory stays at two updates


class HeldUpdates(Protocol):
    """Updates that lie where they were made, of which nobody needs more than their weighted sum (a simulation's)."""

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

    Memory: 8 bytes a parameter, twice that of the float32 model. `held`: updates that are added where they lie.
    """

    def __init__(self, model: Parameters, total_weight: int, held: HeldUpdates | None = None) -> None:
        self._held = held
        self._shapes = {name: array.shape for name, array in model.items()}
        self._sums = {name: np.zeros(array.size, dtype=np.float64) for name, array in model.items()}
        self._total_weight = total_weight
        self._weight = 0

    def add(self, update: Parameters, weight: int) -> None:
        """Add an update, already checked to have the model's names and shapes and only finite values."""
        share = weight / self._total_weight
        for name, total in self._sums.items():
            _add_scaled(total, update[name].reshape(-1), share)
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

    def _averaged(self, name: str, shape: tuple[int, ...], share: float) -> Array:
        total = self._sums.pop(name)
        total /= share
        return total.astype(np.float32).reshape(shape)


def _add_scaled(total: NDArray[np.float64], values: Array, share: float) -> None:
    for start in range(0, total.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        term = values[block].astype(np.float64)
        term *= share
        term += ROUNDING
        term -= ROUNDING
        total[block] += term
