"""Parameters: a model as named float32 arrays, and the checks on those that come from outside."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Parameters = Mapping[str, Array]

# One GiB of float32: above it a message is not an update but an attack, or wants an ADR.
MOST_VALUES = 2**28
MOST_ARRAYS = 10_000
LONGEST_NAME = 256


def problem_of(parameters: Parameters, like: Parameters | None = None) -> str | None:
    """Why these may not be used as parameters, or as an update of `like`; None when they may."""
    problem = parameters.size_problem if isinstance(parameters, Unchanging) else _problem_of_sizes(parameters)
    if problem is None and like is not None and shapes_of(parameters) != shapes_of(like):
        problem = "other names or shapes than the model that was sent"
    if problem is not None:
        return problem
    return parameters.problem if isinstance(parameters, Unchanging) else _problem_in(parameters)


def _problem_of_sizes(parameters: Parameters) -> str | None:
    if not 0 < len(parameters) <= MOST_ARRAYS:
        return f"{len(parameters)} arrays, allowed are 1 to {MOST_ARRAYS}"
    if sum(math.prod(array.shape) for array in parameters.values()) > MOST_VALUES:
        return f"more than {MOST_VALUES} values"
    return None


def _problem_in(parameters: Parameters) -> str | None:
    """Of names and values."""
    for name, array in parameters.items():
        if not 0 < len(name) <= LONGEST_NAME:
            return f"a name of {len(name)} characters, allowed are 1 to {LONGEST_NAME}"
        if array.dtype != np.float32:
            return f"{name} is {array.dtype}, not float32"
        if not np.isfinite(array).all():
            return f"{name} holds a value that is not finite"
    return None


def shapes_of(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """The names and shapes: public, by the task."""
    return parameters.shapes if isinstance(parameters, Unchanging) else _shapes_in(parameters)


def _shapes_in(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in parameters.items()}


def is_same(one: Parameters, other: Parameters) -> bool:
    """Whether both hold the same names, shapes and values."""
    return one is other or (
        shapes_of(one) == shapes_of(other) and all(np.array_equal(one[name], other[name]) for name in one)
    )


class Unchanging(Mapping[str, Array]):
    """Parameters that nobody can change: many nodes of one process check and hash them once. [d] float32, read-only."""

    def __init__(self, parameters: Parameters) -> None:
        if any(array.flags.writeable for array in parameters.values()):
            raise ValueError("an array that can be written may become another one")
        self._parameters = dict(parameters)

    def __getitem__(self, name: str) -> Array:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `shapes_of`."""
        return _shapes_in(self._parameters)

    @cached_property
    def size_problem(self) -> str | None:
        """See `problem_of`: what of it is a matter of sizes alone."""
        return _problem_of_sizes(self._parameters)

    @cached_property
    def problem(self) -> str | None:
        """See `problem_of`: what of it is no matter of sizes."""
        return _problem_in(self._parameters)

    @cached_property
    def hash(self) -> str:
        """See `hash_of`."""
        return hash_of(self._parameters)


def hash_of(parameters: Parameters) -> str:
    """SHA-256 over names, shapes and bytes, in the order of names. Hexadecimal."""
    if isinstance(parameters, Unchanging):
        return parameters.hash
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.asarray(parameters[name], order="C")  # ascontiguousarray would give a scalar a dimension
        digest.update(f"{len(name)}:{name}{array.shape}{array.dtype.str}".encode())
        digest.update(array.data)
    return digest.hexdigest()
