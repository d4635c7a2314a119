"""Who is asked in a round. A public choice from public facts: it amplifies no privacy at unit `record`."""

import math
import random
from collections.abc import Sequence

from ..privacy.plan import Plan


def choose_cohort(eligible: Sequence[str], plan: Plan, round_number: int) -> list[str]:
    """`fraction` of the eligible nodes, at least `min-nodes`, by the plan's seed and the round; in order of name."""
    wanted = max(plan.aggregation.min_nodes, math.ceil(plan.aggregation.fraction * len(eligible)))
    if wanted >= len(eligible):
        return sorted(eligible)
    chance = random.Random(f"privet/cohort/{plan.run.seed}/{round_number}")
    return sorted(chance.sample(sorted(eligible), wanted))
