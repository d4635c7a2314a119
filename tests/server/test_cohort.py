"""Who is asked: enough, in proportion, reproducibly."""

from collections.abc import Callable

from privet.privacy.plan import Plan
from privet.server.cohort import choose_cohort

NAMES = [f"node-{n:02}" for n in range(40)]


def test_everyone_is_asked_by_default(make_plan: Callable[..., Plan]) -> None:
    assert choose_cohort(list(reversed(NAMES)), make_plan(), 1) == NAMES


def test_fraction_is_rounded_up_and_never_below_min_nodes(make_plan: Callable[..., Plan]) -> None:
    assert len(choose_cohort(NAMES, make_plan("aggregation.fraction=0.26"), 1)) == 11
    assert len(choose_cohort(NAMES, make_plan("aggregation.fraction=0.01", "aggregation.min-nodes=5"), 1)) == 5


def test_cohort_depends_on_seed_and_round_and_not_on_the_order_of_names(make_plan: Callable[..., Plan]) -> None:
    plan, other = make_plan("aggregation.fraction=0.5"), make_plan("aggregation.fraction=0.5", "run.seed=4")
    first = choose_cohort(NAMES, plan, 1)
    assert first == choose_cohort(list(reversed(NAMES)), plan, 1)
    assert first != choose_cohort(NAMES, plan, 2)
    assert first != choose_cohort(NAMES, other, 1)


def test_every_node_is_asked_about_equally_often(make_plan: Callable[..., Plan]) -> None:
    """1,000 rounds at a quarter: mean 250, standard deviation 13.7; a false alarm (6 deviations) is below 1e-7."""
    plan = make_plan("aggregation.fraction=0.25")
    counts = dict.fromkeys(NAMES, 0)
    for number in range(1000):
        for name in choose_cohort(NAMES, plan, number):
            counts[name] += 1
    assert all(abs(count - 250) < 82 for count in counts.values())
