"""What a plan must be where whole nodes are hidden: unit `node`, mechanism `central`.

The claim is the server's. Each round every node takes part by itself with chance `aggregation.fraction`; the server
adds up clipped updates and one Gaussian, and divides by a number that was fixed before. So whatever would make a round,
or another node's part in it, depend on who answered is no plan; nor is what nobody accounts for.
"""

from typing import TYPE_CHECKING

from .budget.adaptive import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM, sum_noise_multiplier

if TYPE_CHECKING:
    from .plan import Plan, PrivacySection

ADAPTIVE_KEYS = ("target_quantile", "clip_learning_rate", "count_noise_stddev")
# These need no more of a round than the average. Any other sees single updates, or takes more from a node than one.
CENTRAL_STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
# Andrew et al. 2021, section 3: as fast as a norm may move without leaping over its quantile.
CLIP_LEARNING_RATE = 0.2


def central_problems(plan: "Plan") -> list[str]:
    """Why the plan cannot be meant; empty where it can, and where another unit than `node` is hidden."""
    given = [key for key in ADAPTIVE_KEYS if getattr(plan.privacy, key) is not None]
    if not plan.privacy.is_central:
        return [f"privacy.{_spelled(key)}: unit {plan.privacy.unit!r} does not read it" for key in given]
    return [*_round_problems(plan), *_clip_problems(plan.privacy), *_adaptive_problems(plan.privacy, given)]


def adaptive_problem(noise_multiplier: float, count_noise_stddev: float | None) -> str | None:
    """Why the noise cannot be shared between updates and bits; None where it can, or nothing is shared."""
    if count_noise_stddev is None:
        return None
    try:
        sum_noise_multiplier(noise_multiplier, count_noise_stddev)
    except ValueError:
        return (
            f"privacy.count-noise-stddev: {count_noise_stddev:g} is not above half of the noise multiplier "
            f"{noise_multiplier:g}: the count alone would cost more than the claim"
        )
    return None


def _round_problems(plan: "Plan") -> list[str]:
    problems, strategy = [], plan.aggregation.strategy
    if strategy not in CENTRAL_STRATEGIES:
        known = ", ".join(CENTRAL_STRATEGIES)
        problems.append(f"aggregation.strategy: {strategy!r} needs more than the noised sum; unit 'node' has: {known}")
    if plan.aggregation.participations is not None:
        problems.append("aggregation.participations: with unit 'node' each node takes part by chance, every round")
    if plan.run.spare_rounds:
        problems.append("run.spare-rounds: with unit 'node' no round is repeated: who does not answer adds nothing")
    if plan.evaluation is not None:
        problems.append("evaluation: with unit 'node' the nodes' own metrics are not accounted for; leave it out")
    if plan.aggregation.deadline is not None:
        problems.append("aggregation.deadline: unit 'node' does not read it: it is simulated, and no answer is late")
    if plan.aggregation.update_precision not in (None, "float32"):
        precision = plan.aggregation.update_precision
        problems.append(f"aggregation.update-precision: {precision!r} would round parameters before they are clipped")
    return problems


def _clip_problems(privacy: "PrivacySection") -> list[str]:
    """Sums are of whole numbers, in units that follow from the clip norm; ledgers hold it as an amount."""
    clip_norm = privacy.clip_norm
    if clip_norm is None or SMALLEST_CLIP_NORM <= clip_norm <= LARGEST_CLIP_NORM:
        return []
    return [
        f"privacy.clip-norm: {clip_norm:g}; with unit 'node' it lies between "
        f"{SMALLEST_CLIP_NORM:.3g} and {LARGEST_CLIP_NORM:.3g}"
    ]


def _adaptive_problems(privacy: "PrivacySection", given: list[str]) -> list[str]:
    missing = [key for key in ("target_quantile", "count_noise_stddev") if key not in given]
    if given and missing:
        return [f"privacy.{_spelled(key)}: missing; adaptive clipping needs it" for key in missing]
    problem = (
        adaptive_problem(privacy.noise_multiplier, privacy.count_noise_stddev) if privacy.noise_multiplier else None
    )
    return [problem] if problem else []


def _spelled(key: str) -> str:
    return key.replace("_", "-")
