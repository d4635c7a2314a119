"""Every record has one owner, and the kinds do what their names say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.errors import PlanError
from privet.privacy.plan import SimulationSection
from privet.simulations.partition import hold_out, partition

LABELS = np.arange(600, dtype=np.int64) % 10


def section(**keys: Any) -> SimulationSection:
    return SimulationSection.model_validate({key.replace("_", "-"): value for key, value in keys.items()})


KINDS: list[dict[str, Any]] = [
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 0.5},
    {"partition": "shards", "shards_per_node": 2},
    {"partition": "sizes", "sizes": [1.0, 2.0, 3.0, 4.0, 5.0]},
]


@pytest.mark.parametrize("keys", KINDS)
@given(seed=st.integers(0, 1000))
def test_every_record_has_exactly_one_owner(keys: dict[str, Any], seed: int) -> None:
    shares = partition(LABELS, section(nodes=5, **keys), seed)
    assert len(shares) == 5
    assert all(len(share) for share in shares)
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(len(LABELS)))


@pytest.mark.parametrize("keys", KINDS)
def test_one_seed_one_partition(keys: dict[str, Any]) -> None:
    one, same, other = (partition(LABELS, section(nodes=5, **keys), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_shares_are_of_equal_size() -> None:
    sizes = {len(share) for share in partition(LABELS, section(nodes=7), 1)}
    assert max(sizes) - min(sizes) <= 1


def test_sizes_are_in_the_plans_proportions() -> None:
    shares = partition(LABELS, section(nodes=3, partition="sizes", sizes=[1, 2, 3]), 1)
    assert [len(share) for share in shares] == [100, 200, 300]


def test_shards_give_few_classes_to_a_node() -> None:
    shares = partition(LABELS, section(nodes=10, partition="shards", shards_per_node=1), 1)
    assert all(len(set(LABELS[share])) <= 2 for share in shares)


def test_small_alpha_skews_and_large_alpha_does_not() -> None:
    def skew(alpha: float) -> float:
        shares = partition(LABELS, section(nodes=10, partition="dirichlet", alpha=alpha), 3)
        tops = [np.bincount(LABELS[share], minlength=10).max() / len(share) for share in shares]
        return float(np.mean(tops))

    assert skew(0.1) > 0.4 > 0.2 > skew(1000.0)


@given(count=st.integers(2, 3000), share=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_held_out_records_belong_to_no_node(count: int, share: float, seed: int) -> None:
    shared, held = hold_out(count, share, seed)
    assert not set(shared.tolist()) & set(held.tolist())
    assert len(shared) + len(held) == count
    assert len(held) == max(1, round(count * share))


def test_more_nodes_than_records_is_an_error_that_says_so() -> None:
    with pytest.raises(PlanError, match="601 nodes share 600 records"):
        partition(LABELS, section(nodes=601), 1)


def test_partition_that_leaves_a_node_empty_is_an_error() -> None:
    with pytest.raises(PlanError, match="leaves a node without records"):
        partition(LABELS, section(nodes=2, partition="sizes", sizes=[1e-9, 1.0]), 1)
