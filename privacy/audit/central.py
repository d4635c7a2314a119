"""A server's noised rounds, checked: noise no smaller than the claim's, and a clip norm that follows from the record.

With a moving clip norm two sums are released, of updates and of bits, and what they cost together is computed here from
what was added to each; no code is shared with what added it. Each norm must follow from the round before, by the
noised share that the ledger holds: a norm from anywhere else could have been computed from updates.
"""

import math
from collections.abc import Iterator

from ..plan import Plan
from .bodies import Answered
from .history import Run

# What a double may lose when a formula is computed in another order.
_ROUNDING = 1e-9
_SMALLEST, _LARGEST = -40.0, 39.0  # clip norms, in powers of two


def check_central(run: Run, body: Answered) -> Iterator[str]:
    """What is wrong with a round of unit `node`; remembers the clip norm after it."""
    assert run.submission is not None, "its plan can be read"
    plan, claim = run.submission.plan, run.submission.claim
    done = (body.noise_multiplier, body.clip_norm, body.sampling_rate, body.steps)
    if claim is None or None in done or body.noise_multiplier is None or body.clip_norm is None:
        yield "does not tell its noise multiplier, clip norm, sampling rate and steps"
        return
    if body.sampling_rate != plan.aggregation.fraction:
        yield f"sampling rate {body.sampling_rate} of the nodes, the plan says {plan.aggregation.fraction}"
    if body.steps != 1:
        yield f"{body.steps} noised sums, a round has one"
    yield from _noise_problems(plan, claim.noise_multiplier, body)
    yield from _clip_norm_problems(run, plan, body)


def _noise_problems(plan: Plan, needed: float, body: Answered) -> Iterator[str]:
    """The noise of what was released, as one mechanism: at least the claim's."""
    added, count = body.noise_multiplier, body.count_noise_stddev
    assert added is not None, "it was asked for"
    if plan.privacy.count_noise_stddev is None:
        if count is not None or body.within is not None:
            yield "a count was released, which the plan does not ask for"
        if added < needed:
            yield f"noise multiplier {added}, the plan says {needed}"
        return
    if count is None or not (count > 0 and added > 0):
        yield "its count has no noise"
        return
    together = 1 / math.hypot(1 / added, 1 / (2 * count))
    if together < needed * (1 - _ROUNDING):
        why = f"updates with {added} and the count with {count} have a noise multiplier of {together:.6f} together"
        yield f"{why}, the plan says {needed}"


def _clip_norm_problems(run: Run, plan: Plan, body: Answered) -> Iterator[str]:
    privacy, clip_norm = plan.privacy, body.clip_norm
    assert clip_norm is not None, "it was asked for"
    last, expected = run.central or (0, privacy.clip_norm or 0.0)
    run.central = (body.round, expected)
    if body.round != last + 1:
        yield f"round {body.round} after round {last}"
    if clip_norm != expected:
        yield f"clip norm {clip_norm}, the rounds before give {expected}"
    if privacy.target_quantile is None or privacy.clip_learning_rate is None:
        return
    if body.within is None or body.next_clip_norm is None:
        yield "does not tell the noised share and the clip norm that follows from it"
        return
    run.central = (body.round, body.next_clip_norm)
    factor = math.exp(min(max(privacy.clip_learning_rate * (privacy.target_quantile - body.within), -700.0), 700.0))
    following = min(max(clip_norm * factor, 2.0**_SMALLEST), 2.0**_LARGEST)
    if not math.isclose(body.next_clip_norm, following, rel_tol=_ROUNDING):
        yield f"clip norm {body.next_clip_norm} for the next round, by its noised share it is {following:.9g}"
