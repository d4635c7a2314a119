"""Who is asked in a round. At unit `record` a public choice from public facts, which amplifies no privacy; at unit
`node` a Poisson sample, which does: there it is the server's secret.
"""

import math
import random
from collections.abc import Sequence

import numpy as np

from ..privacy.plan import Plan


def asked_of(plan: Plan, eligible: int) -> int:
    """How many of so many eligible nodes a round asks."""
    return min(eligible, max(plan.aggregation.min_nodes, math.ceil(plan.aggregation.fraction * eligible)))


def choose_cohort(eligible: Sequence[str], plan: Plan, round_number: int) -> list[str]:
    """`fraction` of the eligible nodes, at least `min-nodes`, by the plan's seed and the round; in order of name."""
    wanted = asked_of(plan, len(eligible))
    if wanted >= len(eligible):
        return sorted(eligible)
    chance = random.Random(f"privet/cohort/{plan.run.seed}/{round_number}")
    return sorted(chance.sample(sorted(eligible), wanted))


def poisson_cohort(eligible: Sequence[str], rate: float, chance: np.random.Generator) -> list[str]:
    """Each of the eligible nodes with chance `rate`, independently of all others; in order of name. It may be empty.

    A chance is exact to 2^-53.
    """
    names = sorted(eligible)
    return [name for name, drawn in zip(names, chance.random(len(names)), strict=True) if drawn < rate]
