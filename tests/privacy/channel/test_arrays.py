import io
import itertools

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from privet.privacy.channel.arrays import as_record, to_parameters, to_record
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.parameters import MOST_ARRAYS

SHAPES = array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


def record_of(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (3,), stype, data)})


def npy(header: str, values: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header at all, padded as numpy pads it."""
    text = header.encode("latin1")
    padding = b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + (len(text) + len(padding)).to_bytes(2, "little") + text + padding + values


def header_of(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def refused(record: ArrayRecord) -> str:
    with pytest.raises(RefusedError) as caught:
        to_parameters(record)
    assert caught.value.code == Refusal.MALFORMED_REQUEST
    assert caught.value.message.startswith("malformed arrays: ")
    return caught.value.message


@given(st.dictionaries(st.text(min_size=1, max_size=5), arrays(np.float32, SHAPES), max_size=4))
def test_parameters_read_back_bit_by_bit(parameters: dict[str, np.ndarray]) -> None:
    for record in (to_record(parameters), as_record(iter(parameters.items()))):
        back = to_parameters(record)
        assert list(back) == list(parameters)
        for name, array in parameters.items():
            assert (back[name].shape, back[name].dtype) == (array.shape, np.float32)
            assert back[name].tobytes() == array.tobytes()


@given(arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)))
def test_flower_reads_what_is_written_and_its_own_is_read(array: np.ndarray) -> None:
    """Flower's own encoder and decoder (numpy.save, numpy.load) are the reference."""
    np.testing.assert_array_equal(to_record({"w": array})["w"].numpy(), array, strict=True)
    np.testing.assert_array_equal(to_parameters(ArrayRecord({"w": Array(array)}))["w"], array, strict=True)


def test_layout_and_precision_are_made_plain() -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    for other in (np.asfortranarray(array), array.astype(">f4"), array[::-1, ::-1][::-1, ::-1]):
        back = to_parameters(to_record({"w": other}))["w"]
        np.testing.assert_array_equal(back, array.astype(np.float32), strict=True)


def test_what_was_read_is_a_view_that_cannot_be_changed() -> None:
    record = to_record({"w": np.ones(3, np.float32)})
    view = to_parameters(record)["w"]
    assert np.shares_memory(view, np.frombuffer(record["w"].data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i4", "|b1", "<c8", "<U4", "|S4", "<M8[s]"])
def test_other_types_are_refused(dtype: str) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3, dtype))
    assert "not plain float32" in refused(record_of(file.getvalue()))


def test_pickled_objects_are_never_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("the pickle was loaded",))

    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert "not plain float32" in refused(record_of(file.getvalue()))


def test_fortran_order_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.asfortranarray(np.zeros((2, 3), np.float32)))
    assert "not plain float32" in refused(record_of(file.getvalue()))


@pytest.mark.parametrize("stype", ["", "torch.Tensor", "numpy.ndarray "])
def test_another_serialisation_is_refused(stype: str) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float32))
    assert f"stored as {stype!r}" in refused(record_of(file.getvalue(), stype))


@pytest.mark.parametrize(("shape", "values"), [("(3,)", 2), ("(3,)", 4), ("()", 0), ("(0,)", 1), ("(2, 3)", 5)])
def test_length_that_is_not_the_shapes(shape: str, values: int) -> None:
    assert f"has {4 * values} bytes for shape" in refused(record_of(npy(header_of(shape), bytes(4 * values))))


@pytest.mark.parametrize(
    "shape",
    [
        "(-1,)",
        "(-1, -1)",
        "(True,)",
        "(1.0,)",
        "(1)",
        "1",
        "[1]",
        "(1,) * 1",
        "(" + "9" * 400 + ",)",
        "(0, 9999999999, 9999999999)",
        "(0, 1073741824)",
        "(1, 1, 1, 1, 1, 1, 1, 1, 1)",
        "(__import__('os').abort(),)",
        "((1,),)",
        "(1,,)",
    ],
)
def test_hostile_shape(shape: str) -> None:
    assert refused(record_of(npy(header_of(shape), bytes(4))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"PK\x03\x04",
        npy(header_of("(1,)"), bytes(4), version=b"\x02\x00"),
        npy(header_of("(1,)"), bytes(4), version=b"\x03\x00"),
        npy("{}", bytes(4)),
        npy("(" * 5000, bytes(4)),
        npy("{1: 2, 'a': 3}", bytes(4)),
        npy("'" + "a" * 100, bytes(4)),
        npy(header_of("(1L,)"), bytes(4)),
        npy(header_of("(1,)", descr="[('a', '<f4')]"), bytes(4)),
        npy(header_of("(1,)", fortran="0"), bytes(4)),
        npy(header_of("(1,)") + " #", bytes(4)),
        npy(header_of("(1,)"), bytes(4))[:40],
    ],
)
def test_hostile_header(data: bytes) -> None:
    assert refused(record_of(data))


def test_header_length_that_lies() -> None:
    honest = npy(header_of("(1,)"), bytes(4))
    for lie in (0, 1, int.from_bytes(honest[8:10], "little") - 1, 65535):
        assert refused(record_of(honest[:8] + lie.to_bytes(2, "little") + honest[10:]))


def test_values_that_are_not_aligned_are_refused() -> None:
    """numpy pads to 64 bytes; values at odd addresses are a trap for whoever hands the memory on."""
    text = header_of("(1,)").encode() + b"\n"
    assert refused(record_of(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)))


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    honest = bytearray(npy(header_of("(3,)"), np.ones(3, np.float32).tobytes()))
    place = data.draw(st.integers(0, len(honest) - 1))
    honest[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(honest)))
    try:
        array = to_parameters(record_of(bytes(honest[:cut])))["w"]
    except RefusedError:
        return
    assert (array.dtype, array.nbytes) == (np.float32, 4 * array.size)


def test_more_arrays_than_a_model_has_are_refused() -> None:
    one = to_record({"w": np.zeros((), np.float32)})["w"]
    many = ArrayRecord({str(number): one for number in itertools.chain(range(MOST_ARRAYS), ["more"])})
    assert f"{MOST_ARRAYS + 1} arrays, allowed are {MOST_ARRAYS}" in refused(many)
