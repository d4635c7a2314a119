"""The server's noised rounds: what one node can change, what is added, by what it is divided; who takes part."""

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from privet.privacy.budget.adaptive import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM
from privet.privacy.plan import MOST_NODES
from privet.privacy.submission import Submission
from privet.server.central import CentralRounds, CentralSum, Noise, seed_of, seeded, seeded_noise
from privet.server.cohort import poisson_cohort
from scipy import stats

CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "aggregation.fraction=0.25",
)
ADAPTIVE = (*CENTRAL, "privacy.target-quantile=0.5", "privacy.count-noise-stddev=2.0")
SHAPES = {"w": (3, 2), "b": (2,)}
ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


class Book:
    """Keeps what is entered."""

    def __init__(self) -> None:
        self.begun: dict[int, str] = {}
        self.done: dict[int, Mapping[str, str]] = {}
        self.released: dict[int, str] = {}

    def begin(self, round_number: int, asked: str) -> None:
        self.begun[round_number] = asked

    def answered(self, round_number: int, released: str, done: Mapping[str, str]) -> None:
        assert round_number in self.begun
        self.done[round_number] = done
        self.released[round_number] = released


def model_of(value: float = 0.0) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def model_of_values(values: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": values[:6].reshape(3, 2), "b": values[6:]}


def joined(parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([parameters[name].reshape(-1) for name in SHAPES]).astype(np.float64)


def silence(round_number: int, count: int) -> np.ndarray:
    return np.zeros(count)


def rounds_of(submission: Submission, nodes: int = 40, noise: Noise = silence) -> tuple[CentralRounds, Book]:
    book = Book()
    return CentralRounds(submission, nodes, book, noise), book


def squared_length(difference: np.ndarray) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in difference), Fraction(0))


# 1. What one node can change.


@given(
    others=st.lists(arrays(np.float32, 8, elements=ANY_FLOAT), max_size=3),
    liar=arrays(np.float32, 8, elements=ANY_FLOAT),
    start=arrays(np.float32, 8, elements=st.floats(-1e3, 1e3, width=32)),
    clip_norm=st.floats(1e-6, 1e6),
    bit=st.integers(-5, 5),
)
def test_no_node_moves_the_sum_by_more_than_the_clip_norm(
    others: list[np.ndarray], liar: np.ndarray, start: np.ndarray, clip_norm: float, bit: int
) -> None:
    """In exact arithmetic, whatever it sends: huge values, NaN, infinities, any number for a bit."""
    model = model_of_values(start)
    without, with_it = CentralSum(model, clip_norm), CentralSum(model, clip_norm)
    for other in others:
        without.add(model_of_values(other), 1)
        with_it.add(model_of_values(other), 1)
    with_it.add(model_of_values(liar), bit)
    difference = with_it.values() - without.values()  # of multiples of one power of two: exact
    assert squared_length(difference) <= Fraction(clip_norm) ** 2
    assert abs(with_it.counted - without.counted) <= 0.5


@given(updates=st.lists(arrays(np.float32, 8, elements=st.floats(-9, 9, width=32)), min_size=2, max_size=6))
def test_the_sum_does_not_depend_on_the_order_of_answers(updates: list[np.ndarray]) -> None:
    forwards, backwards = CentralSum(model_of(), 0.7), CentralSum(model_of(), 0.7)
    for update in updates:
        forwards.add(model_of_values(update), 1)
    for update in reversed(updates):
        backwards.add(model_of_values(update), 1)
    assert np.array_equal(forwards.values(), backwards.values())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poisoned_update(poison: float) -> None:
    """One value that is not finite, and the whole update adds nothing, its bit neither."""
    summed, update = CentralSum(model_of(), 1.0), model_of(0.1)
    update["b"][1] = poison
    summed.add(update, 1)
    assert not summed.values().any()
    assert summed.counted == 0


def test_an_update_within_the_norm_is_added_as_it_is() -> None:
    summed, update = CentralSum(model_of(2.0), 1.0), model_of(2.1)
    summed.add(update, 1)
    moved = joined(update) - 2.0
    assert np.abs(summed.values() - moved).max() < 2.0**-37


def test_a_larger_update_keeps_its_direction() -> None:
    summed = CentralSum(model_of(), 0.5)
    summed.add(model_of(3.0), 0)
    assert np.allclose(summed.values(), 0.5 / math.sqrt(8), rtol=1e-6)
    assert summed.counted == -0.5


@pytest.mark.parametrize("clip_norm", [1.0, 1.9, 2.0, 1e-12, 3e11])
def test_as_many_nodes_as_a_plan_may_have_do_not_overflow(clip_norm: float) -> None:
    summed = CentralSum({"w": np.zeros(1, np.float32)}, clip_norm)
    summed.add({"w": np.full(1, 3e38, np.float32)}, 1)
    (one,) = summed.values()
    tiny = CentralSum({"w": np.zeros(1, np.float32)}, clip_norm)
    tiny.add({"w": np.array([clip_norm / 2**39], np.float32)}, 1)  # of the order of one unit
    (unit,) = tiny.values()
    assert MOST_NODES * one / unit < 2**62


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_norm_that_clips_nothing_is_a_mistake(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        CentralSum(model_of(), clip_norm)


# 2. What is released.


def test_the_average_is_over_the_nodes_expected_not_over_those_that_answer(make_submission) -> None:
    """q N is 10 here, be there one answer, or three, or none."""
    for answers in (0, 1, 3):
        rounds, _ = rounds_of(make_submission(*CENTRAL))
        rounds.begin(1, model_of(1.0))
        for _ in range(answers):
            rounds.add(model_of(1.1), 1)
        assert joined(rounds.release()) - 1.0 == pytest.approx(answers * 0.1 / 10, rel=1e-5, abs=1e-9)


def test_noise_is_one_gaussian_of_the_stated_deviation_on_every_value(make_submission) -> None:
    """Kolmogorov and Smirnov at 0.001 over 3,000 rounds of 8 values each; false alarms: none, the seed is fixed."""
    rounds, book = rounds_of(make_submission(*CENTRAL), nodes=40, noise=seeded_noise("5"))
    drawn = []
    for number in range(1, 3001):
        rounds.begin(number, model_of())
        rounds.add(model_of(0.05), 1)
        drawn.append((joined(rounds.release()) * 10 - 0.05) / (0.8 * 0.5))
    values = np.stack(drawn)
    assert stats.kstest(values.reshape(-1), "norm").pvalue > 0.001
    correlations = np.corrcoef(values.T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(3000)
    between_rounds = (values[1:] * values[:-1]).mean()
    assert abs(between_rounds) < 4.5 / math.sqrt(8 * 2999)
    assert book.done[1]["noise_multiplier"] == "0.8"


def test_a_round_that_is_done_again_has_the_same_noise(make_submission) -> None:
    again = [rounds_of(make_submission(*CENTRAL), noise=seeded_noise("5"))[0] for _ in range(2)]
    for rounds in again:
        rounds.begin(7, model_of())
    assert np.array_equal(joined(again[0].release()), joined(again[1].release()))


def test_rounds_seeds_and_uses_share_no_numbers() -> None:
    draws = {
        seeded(use, seed, number).integers(2**63)
        for use in ("noise", "cohort")
        for seed in ("1", "2")
        for number in range(50)
    }
    assert len(draws) == 200


@pytest.mark.parametrize("change", ["training.learning-rate=1e-30", "run.name=other", "run.seed=4"])
def test_runs_of_other_plans_have_no_noise_in_common(make_submission, change: str) -> None:
    """Of one seed too: the difference of two models would be the exact sum."""
    one, other = make_submission(*CENTRAL), make_submission(*CENTRAL, change)
    assert seed_of(one) != seed_of(other)
    cohorts = [[rounds_of(s)[0].cohort([f"n{n}" for n in range(40)], k) for k in range(5)] for s in (one, other)]
    assert cohorts[0] != cohorts[1]


def test_the_same_plan_has_the_same_noise_whenever_and_by_whomever_it_is_asked_for(make_submission) -> None:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    assert seed_of(make_submission(*CENTRAL)) == seed_of(make_submission(*CENTRAL, run_id="run-2", now=now))


@pytest.mark.parametrize("bits", [[0, 1], [1, 1]])
def test_what_is_entered_of_a_round_names_its_count_too(make_submission, bits: list[int]) -> None:
    """Of the same model: else a round that is done again could release another count."""
    _, one = moved_by(make_submission(*ADAPTIVE), [1, 0])
    _, other = moved_by(make_submission(*ADAPTIVE), bits)
    assert (one.released == other.released) == (sum(bits) == 1)


def test_an_extreme_count_stays_a_number_that_a_ledger_may_hold(make_submission) -> None:
    plan = (*ADAPTIVE, "aggregation.fraction=1e-7", "privacy.count-noise-stddev=1e6")
    rounds, book = moved_by(make_submission(*plan), [1], lambda number, count: np.full(count, -5.0))
    assert abs(float(book.done[1]["within"])) <= 1e12
    assert rounds.clip_norm == pytest.approx(LARGEST_CLIP_NORM)


def test_an_empty_round_releases_noise(make_submission) -> None:
    rounds, _ = rounds_of(make_submission(*CENTRAL), noise=seeded_noise("5"))
    rounds.begin(1, model_of())
    assert joined(rounds.release()).all()


def test_what_was_done_is_entered_before_the_result_is_given(make_submission) -> None:
    rounds, book = rounds_of(make_submission(*CENTRAL))
    rounds.begin(1, model_of())
    rounds.release()
    told = book.done[1]
    assert {key: told[key] for key in ("clip_norm", "sampling_rate", "steps")} == {
        "clip_norm": "0.5",
        "sampling_rate": "0.25",
        "steps": "1",
    }
    assert not {"answered", "cohort", "nodes"} & set(told)  # who took part is a secret


def test_a_plan_whose_claim_is_the_nodes_gets_no_noise_here(make_submission) -> None:
    with pytest.raises(ValueError, match="unit 'node'"):
        rounds_of(make_submission(private=True))


# 3. Who takes part.


def test_each_node_takes_part_by_itself() -> None:
    """Sizes of 4,000 cohorts of 12 nodes are binomial, each node comes as often as another, and any two come together
    as often as two coins: chi-square at 0.001; no false alarms, the seed is fixed.
    """
    names, rate, runs = [f"n{number:02}" for number in range(12)], 0.3, 4000
    drawn = np.zeros((runs, 12), bool)
    for number in range(runs):
        cohort = poisson_cohort(names, rate, seeded("cohort", "1", number))
        drawn[number] = [name in cohort for name in names]
    sizes = Counter(drawn.sum(axis=1).tolist())
    expected = runs * stats.binom.pmf(range(13), 12, rate)
    few = [size for size in range(13) if expected[size] >= 5]
    found = [sizes[size] for size in few]
    rest, expected_rest = runs - sum(found), runs - expected[few].sum()
    assert stats.chisquare([*found, rest], [*expected[few], expected_rest]).pvalue > 0.001
    together = drawn.T.astype(int) @ drawn.astype(int)
    pairs = together[np.triu_indices(12, 1)]
    spread = runs * rate**2 * (1 - rate**2)
    assert np.abs(pairs - runs * rate**2).max() < 4.5 * math.sqrt(spread)
    assert np.abs(np.diag(together) - runs * rate).max() < 4.5 * math.sqrt(runs * rate * (1 - rate))


def test_a_cohort_may_be_empty_and_may_be_everybody() -> None:
    assert any(poisson_cohort(["a", "b"], 0.1, seeded("cohort", "1", n)) == [] for n in range(20))
    assert poisson_cohort(["b", "a"], 1.0, seeded("cohort", "1", 1)) == ["a", "b"]


def test_the_cohort_knows_nothing_of_min_nodes(make_submission) -> None:
    rounds, _ = rounds_of(make_submission(*CENTRAL, "aggregation.min-nodes=3"))
    sizes = {len(rounds.cohort(["a", "b", "c"], number)) for number in range(1, 60)}
    assert {0, 1} <= sizes


# 4. The clip norm that moves.


def moved_by(submission: Submission, bits: list[int], noise: Noise = silence) -> tuple[CentralRounds, Book]:
    rounds, book = rounds_of(submission, nodes=40, noise=noise)
    rounds.begin(1, model_of())
    for bit in bits:
        rounds.add(model_of(0.01), bit)
    rounds.release()
    return rounds, book


def test_the_norm_falls_where_most_are_within_it_and_rises_where_few_are(make_submission) -> None:
    """Flower's own moves the other way (as of 1.41)."""
    submission = make_submission(*ADAPTIVE)
    assert moved_by(submission, [1] * 10)[0].clip_norm == pytest.approx(0.5 * math.exp(-0.2 * 0.5))
    assert moved_by(submission, [0] * 10)[0].clip_norm == pytest.approx(0.5 * math.exp(0.2 * 0.5))
    assert moved_by(submission, [1] * 5 + [0] * 5)[0].clip_norm == pytest.approx(0.5)


def test_the_noise_of_a_round_is_that_of_the_norm_which_clipped(make_submission) -> None:
    """And not of the norm that the round gives; it is more than with a fixed norm, since the count costs too."""
    rounds, book = moved_by(make_submission(*ADAPTIVE), [1] * 10, lambda number, count: np.ones(count))
    assert book.done[1]["clip_norm"] == "0.5"
    multiplier = (0.8**-2 - (2 * 2.0) ** -2) ** -0.5
    assert float(book.done[1]["noise_multiplier"]) == pytest.approx(multiplier)
    rounds, _ = rounds_of(make_submission(*ADAPTIVE), noise=lambda number, count: np.ones(count))
    rounds.begin(1, model_of())
    assert joined(rounds.release()) == pytest.approx(multiplier * 0.5 / 10, rel=1e-6)


def test_the_count_is_noised_by_its_own_deviation_over_the_nodes_expected(make_submission) -> None:
    def only_the_count(round_number: int, count: int) -> np.ndarray:
        return np.eye(1, count)[0]

    rounds, book = moved_by(make_submission(*ADAPTIVE), [1, 1, 0], only_the_count)
    assert float(book.done[1]["within"]) == pytest.approx((0.5 + 2.0) / 10 + 0.5)
    assert float(book.done[1]["next_clip_norm"]) == rounds.clip_norm


def test_the_clip_norm_is_remembered(make_submission) -> None:
    first, _ = moved_by(make_submission(*ADAPTIVE), [1] * 10)
    second, _ = rounds_of(make_submission(*ADAPTIVE))
    second.remind(first.remembered())
    assert second.clip_norm == first.clip_norm != 0.5


def test_a_fixed_norm_stays(make_submission) -> None:
    rounds, book = moved_by(make_submission(*CENTRAL), [1] * 10, seeded_noise("1"))
    assert rounds.clip_norm == 0.5
    assert "next_clip_norm" not in book.done[1]


@pytest.mark.parametrize(("bit", "limit"), [(1, SMALLEST_CLIP_NORM), (0, LARGEST_CLIP_NORM)])
def test_the_norm_neither_vanishes_nor_explodes(make_submission, bit: int, limit: float) -> None:
    rounds, _ = rounds_of(make_submission(*ADAPTIVE, "privacy.clip-learning-rate=5.0"), nodes=4)
    for number in range(1, 41):
        rounds.begin(number, model_of())
        for _ in range(2):
            rounds.add(model_of(), bit)
        rounds.release()
    assert rounds.clip_norm == pytest.approx(limit)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_the_norm_finds_its_quantile_exponentially_fast(make_submission, quantile: float) -> None:
    """As figure 1 of Andrew et al. 2021: norms are log-normal, eta is 0.2, sigma_b a twentieth of the cohort. From a
    hundredth of the median the norm grows by exp(eta * quantile) a round, and then stays within a few per cent.
    """
    assignments = (*CENTRAL, f"privacy.target-quantile={quantile}", "privacy.count-noise-stddev=5.0")
    submission = make_submission(*assignments, "privacy.clip-norm=0.01", "aggregation.fraction=0.1")
    rounds, _ = rounds_of(submission, nodes=1000, noise=seeded_noise("3"))
    chance, model = np.random.default_rng(1), {"w": np.zeros(1, np.float32)}
    norms = []
    for number in range(1, 301):
        rounds.begin(number, model)
        norms.append(rounds.clip_norm)
        for length in chance.lognormal(0.0, 1.0, chance.binomial(1000, 0.1)):
            rounds.add({"w": np.array([length], np.float32)}, int(length <= rounds.clip_norm))
        rounds.release()
    grown = norms[10] / norms[0]
    assert grown == pytest.approx(math.exp(0.2 * quantile * 10), rel=0.25)
    wanted = stats.lognorm.ppf(quantile, 1.0)
    assert np.median(norms[200:]) == pytest.approx(wanted, rel=0.15)
