"""The arithmetic of adaptive clipping (Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping").

Each unit of a round gives two things: its update, of norm at most C, and a bit that says whether it was within C before
it was clipped. The bit is centred to -1/2 or +1/2, so that one unit moves the sum of bits by at most 1/2. With noise of
`sum_noise_multiplier` * C on the updates and of standard deviation `count_noise_stddev` on the bits, both sums are,
each divided by its own deviation, one Gaussian mechanism: one unit moves it by at most

    sqrt(sum_noise_multiplier^-2 + (2 count_noise_stddev)^-2) = 1 / noise_multiplier

so the pair costs what one sum with `noise_multiplier` costs (their theorem 1).
"""

import math

# The clip norm begins and stays in here, whatever bits say: so far away it is no norm any more, and 0 and infinity
# would stay so. The largest is below what a ledger's numbers may be (audit/bodies.py: 1e12).
SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM = 2.0**-40, 2.0**39
# The most noise that updates can be left with, where the count costs almost everything; beyond it nothing is learnt.
LARGEST_SUM_NOISE = 1e9


def sum_noise_multiplier(noise_multiplier: float, count_noise_stddev: float) -> float:
    """The noise on the updates, in clip norms, with which updates and bits together cost what `noise_multiplier` does.

    Raises ValueError where there is none: bits with noise of half the multiplier, or less, cost more by themselves. Nor
    is there any that can be meant where they have hardly more.

    >>> round(sum_noise_multiplier(1.0, 10.0), 6)
    1.001252
    """
    left = noise_multiplier**-2 - (2 * count_noise_stddev) ** -2
    if not left > LARGEST_SUM_NOISE**-2:
        raise ValueError(f"{count_noise_stddev} is not above half of the noise multiplier {noise_multiplier}")
    return 1 / math.sqrt(left)


def next_clip_norm(clip_norm: float, within: float, target_quantile: float, learning_rate: float) -> float:
    """The next round's clip norm, by `within`: the noised share of updates that were within this round's.

    Where more than `target_quantile` of them were, the norm is too large and falls; where fewer were, it rises. Only
    noised and public numbers go in, so it is public too.

    >>> round(next_clip_norm(1.0, within=0.9, target_quantile=0.5, learning_rate=0.2), 4)
    0.9231
    """
    moved = math.log(clip_norm) - learning_rate * (within - target_quantile)
    moved = min(max(moved, math.log(SMALLEST_CLIP_NORM)), math.log(LARGEST_CLIP_NORM))
    return min(max(math.exp(moved), SMALLEST_CLIP_NORM), LARGEST_CLIP_NORM)
