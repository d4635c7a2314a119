"""Whole updates, clipped where they are computed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from privet.client.central import clipped_update
from privet.client.update_clipping import clip_updates

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    start=arrays(np.float32, 5, elements=st.floats(-10, 10, width=32)),
    trained=arrays(np.float32, (3, 5), elements=ANY),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_no_row_is_farther_from_the_model_than_the_norm(
    start: np.ndarray, trained: np.ndarray, clip_norm: float
) -> None:
    """Up to the rounding of a float32; whatever training gave."""
    values = torch.from_numpy(trained.copy())
    within = clip_updates(torch.from_numpy(start), values, clip_norm)
    moved = values.double().numpy() - start.astype(np.float64)
    lengths = np.linalg.norm(moved, axis=1)
    assert (lengths <= clip_norm + 1e-6 * (np.linalg.norm(start) + clip_norm)).all()
    before = np.linalg.norm(trained.astype(np.float64) - start.astype(np.float64), axis=1)
    assert within.tolist() == (before <= clip_norm).tolist()


def test_what_is_within_stays_to_the_last_bit() -> None:
    start, values = torch.zeros(4), torch.full((2, 4), 0.25)
    assert clip_updates(start, values, 0.5).all()  # the norm itself is within
    assert torch.equal(values, torch.full((2, 4), 0.25))


def test_a_row_that_is_not_finite_becomes_the_model() -> None:
    start, values = torch.ones(2), torch.tensor([[1.0, float("inf")], [1.0, 1.5]])
    assert clip_updates(start, values, 1.0).tolist() == [False, True]
    assert values.tolist() == [[1.0, 1.0], [1.0, 1.5]]


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_is_none_is_a_mistake(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        clip_updates(torch.zeros(1), torch.zeros(1, 1), clip_norm)


def test_one_node_is_clipped_over_all_its_parameters_together() -> None:
    """By name, whatever the order of names in the model that was sent."""
    start = {"b": np.zeros(2, np.float32), "w": np.ones((2, 2), np.float32)}
    trained = {"w": start["w"] + 3.0, "b": start["b"] + 3.0}
    update, within = clipped_update(start, trained, 0.6)
    assert not within
    assert list(update) == ["w", "b"]
    moved = np.concatenate([(update[name] - start[name]).reshape(-1) for name in start])
    assert np.linalg.norm(moved) == pytest.approx(0.6, rel=1e-5)
    assert moved == pytest.approx(0.6 / np.sqrt(6), rel=1e-5)
