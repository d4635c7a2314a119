"""A model that many nodes of one process are asked with is read and hashed once; another one never passes for it."""

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from privet.client.app import Reader
from privet.privacy.channel.arrays import to_parameters, to_record
from privet.privacy.errors import RefusedError
from privet.privacy.parameters import Unchanging, hash_of, problem_of

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}


def test_same_bytes_are_read_and_hashed_once() -> None:
    read, record = Reader(), to_record(MODEL)
    first = read(record)
    assert read(record) is first
    assert read(ArrayRecord({name: record[name] for name in record})) is first
    assert hash_of(first) == hash_of(to_parameters(record)) == hash_of(MODEL)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_told_to_every_node(value: float) -> None:
    read, record = Reader(), to_record({"w": np.array([1.0, value], np.float32)})
    for _ in range(2):
        assert problem_of(read(record)) == "w holds a value that is not finite"
        assert problem_of(read(record), like=MODEL) == "other names or shapes than the model that was sent"
    assert problem_of(read(to_record(MODEL)), like=MODEL) is None


def test_equal_bytes_of_another_message_are_read_anew() -> None:
    read = Reader()
    first, second = read(to_record(MODEL)), read(to_record(MODEL))
    assert second is not first
    assert hash_of(second) == hash_of(first)


@given(st.lists(st.sampled_from(["w", "b", "c"]), min_size=1, max_size=3, unique=True), st.integers(0, 2))
def test_other_arrays_names_or_order_are_another_model(names: list[str], value: int) -> None:
    read = Reader()
    read(to_record(MODEL))
    other = to_record({name: np.full(2, value, np.float32) for name in names})
    assert hash_of(read(other)) == hash_of(to_parameters(other))
    assert list(read(other)) == names


def test_array_that_was_put_in_the_place_of_another_is_read_anew() -> None:
    read, record = Reader(), to_record(MODEL)
    before = read(record)
    record["b"] = to_record({"b": np.ones(2, np.float32)})["b"]
    assert hash_of(read(record)) != hash_of(before)
    np.testing.assert_array_equal(read(record)["b"], np.ones(2, np.float32))


def test_bytes_that_can_change_are_read_each_time() -> None:
    read, array = Reader(), to_record(MODEL)["b"]
    content = bytearray(array.data)
    record = ArrayRecord({"b": FlowerArray(array.dtype, tuple(array.shape), array.stype, bytes(content))})
    record["b"].data = content  # type: ignore[assignment]
    with pytest.raises(ValueError, match="can be written"):
        read(record)


def test_array_of_another_kind_is_refused_each_time() -> None:
    read, record = Reader(), to_record(MODEL)
    read(record)
    record["b"].stype = "pickle"
    for _ in range(2):
        with pytest.raises(RefusedError):
            read(record)


def test_parameters_that_can_be_written_are_not_unchanging() -> None:
    with pytest.raises(ValueError, match="may become another one"):
        Unchanging(MODEL)
    unchanging = Unchanging(to_parameters(to_record(MODEL)))
    with pytest.raises(ValueError, match="read-only"):
        unchanging["w"][0, 0] = 1.0
