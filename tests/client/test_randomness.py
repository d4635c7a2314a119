"""Where noise and samples come from. Every statistical test names the chance that it fails though all is well."""

import math

import numpy as np
import pytest
import torch
from privet.client.draw import SYSTEM, Draw
from privet.client.randomness import Randomness, SeededRandomness, SystemRandomness, drawn, normals_of
from scipy import stats

ALPHA = 1e-6
SOURCES = [SystemRandomness, lambda: SeededRandomness(5, "test")]


@pytest.fixture(params=SOURCES, ids=["system", "seeded"])
def randomness(request: pytest.FixtureRequest) -> Randomness:
    source: Randomness = request.param()
    return source


def test_noise_is_standard_normal(randomness: Randomness) -> None:
    """Kolmogorov and Smirnov on a million numbers, and of their squares; false alarm: 2e-6."""
    numbers = randomness.gaussian(1_000_000).double().numpy()
    assert stats.kstest(numbers, "norm").pvalue > ALPHA
    assert stats.kstest(numbers**2, "chi2", args=(1,)).pvalue > ALPHA


def test_noise_has_mean_zero_and_variance_one(randomness: Randomness) -> None:
    """Exact distributions of mean and sum of squares; false alarm: 2e-6."""
    count = 1_000_000
    numbers = randomness.gaussian(count).double().numpy()
    assert abs(numbers.mean()) * count**0.5 < stats.norm.isf(ALPHA / 2)
    assert stats.chi2.ppf(ALPHA / 2, count) < (numbers**2).sum() < stats.chi2.isf(ALPHA / 2, count)


def test_tails_of_the_noise_are_there(randomness: Randomness) -> None:
    """Numbers beyond 4 deviations are binomial on each side; false alarm: 2e-6. Noise cut short would hide nothing."""
    count = 2_000_000
    numbers = randomness.gaussian(count).numpy()
    expected = stats.binom(count, stats.norm.sf(4))
    for beyond in ((numbers > 4).sum(), (numbers < -4).sum()):
        assert expected.ppf(ALPHA / 2) <= beyond <= expected.isf(ALPHA / 2)


def test_numbers_of_one_draw_are_independent(randomness: Randomness) -> None:
    """Neighbours, the two halves (which Box and Muller make from one radius) and two draws; false alarm: 8e-6."""
    count = 400_000
    numbers, later = (randomness.gaussian(count).double().numpy() for _ in range(2))
    half = count // 2
    pairs = [(numbers[:-1], numbers[1:]), (numbers[:half], numbers[half:]), (numbers, later)]
    pairs += [(first**2, second**2) for first, second in pairs[:2]]
    for first, second in pairs:
        assert stats.pearsonr(first, second).pvalue > ALPHA


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_as_many_numbers_as_asked_for(randomness: Randomness, count: int) -> None:
    numbers = randomness.gaussian(count)
    assert numbers.shape == (count,)
    assert numbers.dtype == torch.float32


def test_odd_counts_do_not_repeat_a_number(randomness: Randomness) -> None:
    numbers = torch.cat([randomness.gaussian(3) for _ in range(100)])
    assert len(set(numbers.tolist())) == 300


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.5, 0.999])
def test_each_record_is_sampled_at_the_rate(randomness: Randomness, rate: float) -> None:
    """How often each of 50 is drawn in 4,000 samples is binomial: chi-square over the 50; false alarm: 1e-6 a rate."""
    draws = 4000
    counts = np.zeros(50)
    for _ in range(draws):
        counts[randomness.poisson_sample(50, rate).numpy()] += 1
    statistic = ((counts - draws * rate) ** 2 / (draws * rate * (1 - rate))).sum()
    assert stats.chi2.ppf(ALPHA / 2, 50) < statistic < stats.chi2.isf(ALPHA / 2, 50)


def test_records_are_sampled_independently_of_each_other(randomness: Randomness) -> None:
    """The size of a sample is binomial (a fixed size, or pairs, would not be); false alarm: 2e-6."""
    size, rate, draws = 40, 0.3, 20_000
    taken = np.zeros((draws, size), dtype=bool)
    for draw in range(draws):
        taken[draw, randomness.poisson_sample(size, rate).numpy()] = True
    expected = stats.binom(size, rate).pmf(np.arange(size + 1)) * draws
    observed = np.bincount(taken.sum(axis=1), minlength=size + 1)
    common = expected >= 5
    statistic = ((observed[common] - expected[common]) ** 2 / expected[common]).sum()
    assert statistic < stats.chi2.isf(ALPHA, common.sum())
    together = (taken[:, :-1] & taken[:, 1:]).sum()  # neighbours overlap, so the variance is summed by hand
    covariance = 2 * (size - 2) * (rate**3 - rate**4)
    deviation = (draws * ((size - 1) * rate**2 * (1 - rate**2) + covariance)) ** 0.5
    assert abs(together - draws * (size - 1) * rate**2) < stats.norm.isf(ALPHA / 2) * deviation


def test_samples_follow_one_another_independently(randomness: Randomness) -> None:
    """A record's being drawn says nothing about the next step: chi-square of the 2 x 2 table; false alarm: 1e-6."""
    first, second = np.zeros(200_000, dtype=bool), np.zeros(200_000, dtype=bool)
    first[randomness.poisson_sample(200_000, 0.3).numpy()] = True
    second[randomness.poisson_sample(200_000, 0.3).numpy()] = True
    table = [[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_indices_are_ascending_and_each_stands_once(randomness: Randomness) -> None:
    indices = randomness.poisson_sample(10_000, 0.4)
    assert indices.dtype == torch.int64
    assert bool((indices.diff() > 0).all())
    assert int(indices[0]) >= 0
    assert int(indices[-1]) < 10_000


def test_rate_one_takes_every_record(randomness: Randomness) -> None:
    assert randomness.poisson_sample(7, 1.0).tolist() == list(range(7))


def test_rate_next_to_one_does_not_overflow(randomness: Randomness) -> None:
    assert len(randomness.poisson_sample(100_000, 1 - 2**-53)) == 100_000


@pytest.mark.parametrize("rate", [1e-300, 2.0**-65, 1e-12])
def test_tiny_rate_takes_hardly_any(randomness: Randomness, rate: float) -> None:
    """Of 100,000 at 1e-12 one is drawn with chance 1e-7."""
    assert len(randomness.poisson_sample(100_000, rate)) == 0


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_of_no_records_none_is_sampled(randomness: Randomness, rate: float) -> None:
    indices = randomness.poisson_sample(0, rate)
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64


def test_millions_are_sampled_at_once(randomness: Randomness) -> None:
    """Binomial; false alarm: 1e-6."""
    size, rate = 5_000_000, 0.01
    expected = stats.binom(size, rate)
    assert expected.ppf(ALPHA / 2) <= len(randomness.poisson_sample(size, rate)) <= expected.isf(ALPHA / 2)


def test_two_nodes_never_draw_the_same() -> None:
    """Keys come from the operating system: 2^-256 for equal ones, and correlation has a false alarm of 1e-6."""
    ours, theirs = SystemRandomness().gaussian(100_000).double(), SystemRandomness().gaussian(100_000).double()
    assert not torch.equal(ours, theirs)
    assert stats.pearsonr(ours.numpy(), theirs.numpy()).pvalue > ALPHA


def test_torch_and_numpy_seeds_do_not_touch_a_nodes_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(SystemRandomness().gaussian(8))
    assert not torch.equal(draws[0], draws[1])
    assert SystemRandomness.is_seeded is False


def test_seeded_numbers_can_be_drawn_again() -> None:
    ours, theirs = SeededRandomness(3, "node-1", 4), SeededRandomness(3, "node-1", 4)
    assert ours.is_seeded
    assert torch.equal(ours.poisson_sample(1000, 0.3), theirs.poisson_sample(1000, 0.3))
    assert torch.equal(ours.gaussian(50), theirs.gaussian(50))
    assert ours.module_seed() == theirs.module_seed()


def test_no_two_lists_of_labels_draw_the_same() -> None:
    """Also where their texts joined would be one: `a/b` and `a`, `b`; 1 and `1`; the seed and a label."""
    labels: list[tuple[int, tuple[str | int, ...]]] = [
        (1, ("a/b",)),
        (1, ("a", "b")),
        (1, ("a", "b", "")),
        (1, ("ab",)),
        (1, (1,)),
        (1, ("1",)),
        (1, ()),
        (11, ()),
        (1, ('a", "b',)),
        (1, ("a, b",)),
        (2, ("a", "b")),
    ]
    first = {tuple(SeededRandomness(seed, *names).gaussian(4).tolist()) for seed, names in labels}
    assert len(first) == len(labels)


def test_modules_are_seeded_with_what_torch_takes(randomness: Randomness) -> None:
    for _ in range(100):
        assert 0 <= randomness.module_seed() < 2**63


def test_draw_with_a_seed_gives_the_numbers_of_its_labels() -> None:
    theirs = SeededRandomness(3, "simulated-noise", "node-1", "train", 2, 1).gaussian(50)
    assert torch.equal(drawn(Draw(3, ("simulated-noise", "node-1", "train", 2, 1))).gaussian(50), theirs)
    assert drawn(Draw(0)).is_seeded


def test_draw_from_the_operating_system_is_another_each_time() -> None:
    ours, theirs = drawn(SYSTEM), drawn(SYSTEM)
    assert not ours.is_seeded
    assert not torch.equal(ours.gaussian(50), theirs.gaussian(50))


def test_labels_without_a_seed_are_refused() -> None:
    """Somebody would believe that the numbers can be drawn again."""
    with pytest.raises(ValueError, match="seed"):
        Draw(labels=("node-1",))


@pytest.mark.parametrize("of_a_piece", [True, False])
def test_noise_that_is_drawn_in_place_is_the_same_noise(of_a_piece: bool) -> None:
    """Also where the place is a row among others, or every second number of one."""
    rows = torch.zeros(3, 1001)
    place = rows[1] if of_a_piece else rows[1, ::2]
    SeededRandomness(5, "test").gaussian_into(place, 3.0)
    expected = SeededRandomness(5, "test").gaussian(len(place)) * 3.0
    assert torch.allclose(place, expected, rtol=1e-6, atol=0)
    assert not rows[[0, 2]].any()


def test_noise_in_place_has_the_deviation_that_was_asked_for(randomness: Randomness) -> None:
    """Kolmogorov and Smirnov; false alarm: 1e-6."""
    place = torch.zeros(100_000)
    randomness.gaussian_into(place, 3.0)
    assert stats.kstest(place.double().numpy() / 3.0, "norm").pvalue > ALPHA


def test_many_samples_at_once_are_those_of_as_many_calls_also_with_noise_between() -> None:
    at_once = SeededRandomness(3, "node").poisson_masks(40, 0.3, 5)
    randomness = SeededRandomness(3, "node")
    for mask in at_once:
        assert np.flatnonzero(mask).tolist() == randomness.poisson_sample(40, 0.3).tolist()
        randomness.gaussian(100)
    assert not np.array_equal(at_once[0], at_once[1])


def test_every_step_of_a_node_has_a_sample_of_its_own() -> None:
    masks = SystemRandomness().poisson_masks(200, 0.5, 3)
    assert masks.shape == (3, 200)
    assert len({mask.tobytes() for mask in masks}) == 3
    assert bool(SystemRandomness().poisson_masks(7, 1.0, 2).all())


def test_noise_and_samples_of_one_seed_have_nothing_in_common() -> None:
    uniforms = np.arange(1000)[SeededRandomness(3, "a").poisson_sample(1000, 0.5).numpy()]
    noise = SeededRandomness(3, "a").gaussian(1000).numpy()
    assert abs(noise[uniforms].mean() - noise.mean()) < 0.15


def test_the_rarest_integers_give_the_ends_of_the_tail_and_no_infinity() -> None:
    out = np.empty(3, dtype=np.float32)
    normals_of(np.array([0, 2**32 - 1, 0, 2**31], dtype=np.uint32), 2.0, out)
    end = 2.0 * math.sqrt(2 * 32 * math.log(2))
    assert out == pytest.approx([end, 0.0, 0.0], abs=1e-5)


def test_noise_has_no_seam_between_the_parts_in_which_it_is_made() -> None:
    noise = SeededRandomness(3, "long").gaussian(200_001).double()
    assert len(noise.unique()) > 199_000
    assert stats.kstest(noise.numpy(), "norm").pvalue > ALPHA
    assert abs(float((noise[:-65_536] * noise[65_536:]).mean())) < 0.02  # a part, and the same place in the next one
    assert abs(float((noise[:-32_768] * noise[32_768:]).mean())) < 0.02  # the two numbers of a pair
