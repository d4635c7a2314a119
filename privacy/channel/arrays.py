"""Flower's ArrayRecord <-> parameters. Outside data enters here, so nothing is trusted: no pickle, no dtype but
float32, no length but the one that the shape gives.

Reading copies nothing: the arrays are read-only views of the record's own bytes.
"""

import io
import math
from collections.abc import Iterable

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from ..errors import Refusal, RefusedError
from ..parameters import MOST_ARRAYS, Array, Parameters

_STYPE = "numpy.ndarray"
_MOST_DIMENSIONS = 8


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
    file = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise _malformed(f"{name} has no valid .npy header") from None
    if dtype != np.dtype("<f4") or fortran or len(shape) > _MOST_DIMENSIONS:
        raise _malformed(f"{name} is {dtype} with {len(shape)} dimensions, not plain float32")
    offset = file.tell()
    if len(array.data) - offset != 4 * math.prod(shape):
        raise _malformed(f"{name} has {len(array.data) - offset} bytes for shape {shape}")
    values: Array = np.frombuffer(array.data, dtype="<f4", offset=offset).reshape(shape)
    return values


def _malformed(why: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED_REQUEST, f"malformed arrays: {why}", "ask the sender")
