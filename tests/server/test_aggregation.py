"""The running average: right, independent of order, and small."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from privet.server.aggregation import EXACT_BELOW, QUANTUM, ROUNDING, RunningAverage


def updates_of(count: int, seed: int, size: int = 50, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "b": (scale * rng.standard_normal((size, 3))).astype(np.float32),
            "a": rng.standard_normal(()).astype(np.float32),
        }
        for _ in range(count)
    ]


def average(
    updates: list[dict[str, np.ndarray]], weights: list[int], total: int | None = None
) -> dict[str, np.ndarray]:
    running = RunningAverage(updates[0], total or sum(weights))
    for update, weight in zip(updates, weights, strict=True):
        running.add(update, weight)
    return dict(running.result())


@given(seed=st.integers(0, 2**32), weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_average_is_numpys_weighted_average(seed: int, weights: list[int]) -> None:
    updates = updates_of(len(weights), seed)
    result = average(updates, weights)
    for name in updates[0]:
        expected = np.average([u[name].astype(np.float64) for u in updates], axis=0, weights=weights)
        np.testing.assert_allclose(result[name], expected, rtol=2e-7, atol=len(weights) * QUANTUM)


@given(data=st.data(), seed=st.integers(0, 2**32), count=st.integers(2, 12))
def test_order_of_replies_does_not_change_a_bit(data: st.DataObject, seed: int, count: int) -> None:
    updates = updates_of(count, seed, scale=data.draw(st.floats(1e-6, 100.0)))
    weights = data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    one = average(updates, weights)
    other = average([updates[i] for i in order], [weights[i] for i in order])
    for name in one:
        assert one[name].tobytes() == other[name].tobytes()


def test_naive_float_addition_does_depend_on_order() -> None:
    """The reason for the quantum: without it the same replies in another order give other bits."""
    updates = updates_of(8, seed=1, size=2000)
    terms = [u["b"].astype(np.float64) / 3.0 for u in updates]
    forward, backward = sum(terms), sum(reversed(terms))
    assert not np.array_equal(forward, backward)


def test_one_reply_averages_to_itself_up_to_the_quantum() -> None:
    update = updates_of(1, seed=5)[0]
    result = average([update], [7])
    for name in update:
        np.testing.assert_allclose(result[name], update[name], rtol=0, atol=QUANTUM)


def test_nodes_that_do_not_answer_do_not_weigh() -> None:
    updates = updates_of(2, seed=6)
    heard = average(updates, [3, 1], total=100)
    expected = average(updates, [3, 1])
    for name in expected:
        np.testing.assert_allclose(heard[name], expected[name], rtol=1e-6, atol=1e-9)


def test_names_keep_the_models_order_and_dtype() -> None:
    result = average(updates_of(3, seed=2), [1, 2, 3])
    assert list(result) == ["b", "a"]
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert result["a"].shape == ()


def test_average_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        list(RunningAverage({"a": np.zeros(3, np.float32)}, 1).result())


ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(data=st.data(), count=st.integers(1, 6), lying=st.integers(1, 6))
def test_order_of_replies_does_not_change_a_bit_whatever_the_magnitude(
    data: st.DataObject, count: int, lying: int
) -> None:
    """As of a model that diverges, or of nodes that lie: each lie has its negative, so that what is honest remains."""
    row = st.lists(ANY_FLOAT32, min_size=6, max_size=6)
    values = data.draw(st.lists(row, min_size=count + lying, max_size=count + lying))
    weights = data.draw(st.lists(st.integers(1, 10**6), min_size=count + lying, max_size=count + lying))
    values, weights = values + [[-v for v in lie] for lie in values[count:]], weights + weights[count:]
    order = data.draw(st.permutations(range(len(values))))
    updates = [{"a": np.array(row, np.float32)} for row in values]
    one = average(updates, weights)["a"]
    other = average([updates[i] for i in order], [weights[i] for i in order])["a"]
    assert one.tobytes() == other.tobytes()
    columns, total = list(zip(*values, strict=True)), sum(weights)
    exact = [sum(w * Fraction(v) for v, w in zip(column, weights, strict=True)) / total for column in columns]
    for found, right, column in zip(one.tolist(), exact, columns, strict=True):
        largest = max(map(abs, column))
        allowed = len(column) * (QUANTUM + largest * 2.0**-35) + abs(right) * Fraction(2) ** -23
        assert abs(Fraction(found) - right) <= allowed


@pytest.mark.parametrize("scale", [2.0**13, 1e6, 1e12, 1e30])
def test_lies_that_cancel_leave_the_honest_average_in_any_order(scale: float) -> None:
    honest, lies = updates_of(5, seed=4), updates_of(20, seed=3, scale=scale)
    updates = [*lies, *honest, *({name: -array for name, array in lie.items()} for lie in lies)]
    orders = (range(45), range(44, -1, -1), np.random.default_rng(1).permutation(45).tolist())
    averages = [average([updates[place] for place in order], [3] * 45)["b"] for order in orders]
    assert len({found.tobytes() for found in averages}) == 1
    if scale > 1e9:  # smaller lies share a sum with what is honest here and there
        np.testing.assert_allclose(averages[0], sum(update["b"] for update in honest) / 45, rtol=1e-5, atol=1e-7)


def test_naive_sum_of_large_replies_does_depend_on_order() -> None:
    """The reason for the ranges: a quantum that suits usual parameters leaves the exact range."""
    updates = updates_of(40, seed=3, scale=1e6)
    terms = [(u["b"].astype(np.float64) / 3.0 + ROUNDING) - ROUNDING for u in updates]
    assert not np.array_equal(sum(terms), sum(reversed(terms)))


def test_large_values_still_average() -> None:
    huge = [{"a": np.full(4, value, np.float32)} for value in (EXACT_BELOW * 4, EXACT_BELOW * 8)]
    np.testing.assert_allclose(average(huge, [1, 1])["a"], EXACT_BELOW * 6, rtol=1e-7)


def test_largest_float32_averages_to_itself() -> None:
    largest = float(np.finfo(np.float32).max)
    updates = [{"a": np.array([largest, -largest], np.float32)} for _ in range(7)]
    assert average(updates, [3] * 7)["a"].tolist() == [largest, -largest]


def test_memory_stays_at_a_few_updates_however_many_nodes_answer() -> None:
    size = 1_000_000
    model = {"w": np.zeros(size, np.float32)}
    update = {"w": np.ones(size, np.float32)}
    tracemalloc.start()
    running = RunningAverage(model, 50)
    for _ in range(50):
        running.add(update, 1)
    dict(running.result())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * 4 * size
