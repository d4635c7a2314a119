"""What a simulated run is submitted as. No operator signs it and no institution is bound by it, on whatever it runs:
privet's own simulator, or stock Flower.
"""

import secrets
from datetime import UTC, datetime, timedelta

from ..privacy.plan import Plan
from ..privacy.submission import Submission, resolve

FEDERATION, OPERATOR = "simulation", "researcher"
# A simulation may be resumed after a holiday.
VALIDITY = timedelta(days=366)


def simulated_submission(plan: Plan) -> Submission:
    """The plan, resolved as a run of its own. Raises PlanError when no noise can reach the epsilon asked for."""
    return resolve(
        plan,
        federation=FEDERATION,
        run_id=f"{plan.run.name[:40]}-{secrets.token_hex(6)}",
        operator=OPERATOR,
        now=datetime.now(UTC),
        validity=VALIDITY,
    )
