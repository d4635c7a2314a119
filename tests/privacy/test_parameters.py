import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from privet.privacy.parameters import LONGEST_NAME, MOST_ARRAYS, MOST_VALUES, hash_of, problem_of, shapes_of

MODELS = st.dictionaries(
    st.text(max_size=4), arrays(np.float32, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)), max_size=3
)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_model_may_be_used() -> None:
    model = {"w": zeros(2, 3), "b": zeros(3), "scale": zeros()}
    assert problem_of(model) is None
    assert problem_of(model, like=model) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_poisoned_update(value: float) -> None:
    model = {"w": zeros(2, 3), "b": zeros(3)}
    model["b"][1] = value
    assert problem_of(model) == "b holds a value that is not finite"


@pytest.mark.parametrize(
    "other",
    [
        {"w": zeros(2, 3)},
        {"w": zeros(2, 3), "b": zeros(3), "c": zeros(1)},
        {"w": zeros(3, 2), "b": zeros(3)},
        {"w": zeros(2, 3), "B": zeros(3)},
        {"w": zeros(2, 3), "b": zeros(3, 1)},
    ],
)
def test_an_update_of_another_model_is_refused(other: dict[str, np.ndarray]) -> None:
    assert problem_of(other, like={"w": zeros(2, 3), "b": zeros(3)}) == (
        "other names or shapes than the model that was sent"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4", bool, "S4"])
def test_only_float32_is_used(dtype: str) -> None:
    assert "not float32" in str(problem_of({"w": np.zeros(3, dtype)}))


def test_too_many_arrays_or_none_are_refused() -> None:
    assert problem_of({}) == f"0 arrays, allowed are 1 to {MOST_ARRAYS}"
    many = {str(number): zeros() for number in range(MOST_ARRAYS)}
    assert problem_of(many) is None
    assert problem_of(many | {"one more": zeros()}) == f"{MOST_ARRAYS + 1} arrays, allowed are 1 to {MOST_ARRAYS}"


def test_more_values_than_memory_are_refused_before_they_are_looked_at() -> None:
    huge = np.broadcast_to(np.float32(np.nan), (MOST_VALUES, 2**20))
    assert problem_of({"w": huge}) == f"more than {MOST_VALUES} values"


@pytest.mark.parametrize("name", ["", "n" * (LONGEST_NAME + 1)])
def test_a_name_of_no_length_or_too_much_is_refused(name: str) -> None:
    assert f"a name of {len(name)} characters" in str(problem_of({name: zeros(1)}))
    assert problem_of({"n" * LONGEST_NAME: zeros(1)}) is None


def test_hash_by_its_definition() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"1:b(0,)<f4" + b"1:w(2, 3)<f4" + array.tobytes()).hexdigest()
    assert hash_of({"w": array, "b": zeros(0)}) == expected


@given(MODELS, MODELS)
def test_models_hash_alike_exactly_when_they_are_the_same(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> None:
    is_same = shapes_of(one) == shapes_of(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert (hash_of(one) == hash_of(other)) == is_same
    assert hash_of(dict(reversed(list(one.items())))) == hash_of(one)


def test_a_scalar_is_not_a_vector_of_one() -> None:
    assert hash_of({"w": zeros()}) != hash_of({"w": zeros(1)})


def test_hash_does_not_depend_on_layout_in_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for same in (np.asfortranarray(array), np.ascontiguousarray(array.T).T, np.repeat(array, 2, axis=1)[:, ::2]):
        assert hash_of({"w": same}) == hash_of({"w": array})


def test_names_and_values_cannot_be_shifted_into_one_another() -> None:
    assert hash_of({"a": zeros(1), "b": zeros(1)}) != hash_of({"ab": zeros(2)})
    assert hash_of({"a": zeros(2), "b": zeros(1)}) != hash_of({"a": zeros(1), "b": zeros(2)})
