"""Flower's ArrayRecord <-> parameters. Outside data enters here, so nothing is trusted: no pickle, no dtype but
float32, no length but the one that the shape gives.

Reading copies nothing: the arrays are read-only views of the record's own bytes.
"""

import io
import math
import re
from collections.abc import Iterable

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from ..errors import Refusal, RefusedError
from ..parameters import MOST_ARRAYS, MOST_VALUES, Array, Parameters

_STYPE = "numpy.ndarray"
_MOST_DIMENSIONS = 8
# The header as numpy writes it for plain float32, and no other: numpy's own reader parses Python literals, takes
# negative lengths and fails in a dozen ways.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \((|\d{1,10},|\d{1,10}(?:, \d{1,10})+)\), \} *\n",
    re.DOTALL,
)


def to_record(parameters: Parameters) -> ArrayRecord:
    """The parameters as Flower sends them: `.npy` bytes by name, each copied once."""
    return as_record(parameters.items())


def as_record(arrays: Iterable[tuple[str, Array]]) -> ArrayRecord:
    """The same for arrays that come one by one, each of which may be gone before the next is made."""
    return ArrayRecord({name: _encoded(array) for name, array in arrays})


def to_parameters(record: ArrayRecord) -> dict[str, Array]:
    """The record's arrays, checked; raise RefusedError(malformed-request) for anything but float32 `.npy` bytes."""
    if len(record) > MOST_ARRAYS:
        raise _malformed(f"{len(record)} arrays, allowed are {MOST_ARRAYS}")
    return {name: _view(name, array) for name, array in record.items()}


def _encoded(array: Array) -> FlowerArray:
    values = np.asarray(array, dtype="<f4", order="C")
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": values.shape}
    np.lib.format.write_array_header_1_0(header, description)
    content = b"".join((header.getvalue(), values.reshape(-1).data))
    return FlowerArray(dtype="float32", shape=values.shape, stype=_STYPE, data=content)


def _view(name: str, array: FlowerArray) -> Array:
    if array.stype != _STYPE:
        raise _malformed(f"{name} is stored as {array.stype!r}")
    header = _HEADER.match(array.data)
    if header is None or header.end() != 10 + int.from_bytes(array.data[8:10], "little") or header.end() % 64:
        raise _malformed(f"{name} is not plain float32 in .npy 1.0")
    offset, shape = header.end(), tuple(int(length) for length in header[1].split(b",") if length)
    if len(shape) > _MOST_DIMENSIONS or math.prod(length or 1 for length in shape) > MOST_VALUES:
        raise _malformed(f"{name} has shape {shape}; allowed are {_MOST_DIMENSIONS} dimensions, {MOST_VALUES} values")
    if len(array.data) - offset != 4 * math.prod(shape):
        raise _malformed(f"{name} has {len(array.data) - offset} bytes for shape {shape}")
    values: Array = np.frombuffer(array.data, dtype="<f4", offset=offset).reshape(shape)
    return values


def _malformed(why: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED_REQUEST, f"malformed arrays: {why}", "ask the sender")
