"""Draw: where an attempt's random numbers come from, as a value. The numbers themselves are drawn where training is.

A private run at a node draws from the operating system, always. A seed is for runs without privacy, so that a
deployment and a simulation of one plan give the same model, and for simulations, where it protects nobody.
"""

from dataclasses import dataclass

from ..privacy.budget.guard import Attempt
from ..privacy.submission import Submission


@dataclass(frozen=True, slots=True)
class Draw:
    """Fresh from the operating system; or, with a `seed`, reproducible: `labels` keep the uses of one seed apart."""

    seed: int | None = None
    labels: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if self.seed is None and self.labels:
            raise ValueError("labels belong to a seed")

    @property
    def is_seeded(self) -> bool:
        """Whether somebody could draw the same again."""
        return self.seed is not None


SYSTEM = Draw()


def public_draw(submission: Submission, attempt: Attempt, name: str) -> Draw:
    """For runs without privacy: one plan, one choice of batches, in a deployment, a simulation, or a second try."""
    if submission.claim is not None:
        raise ValueError("a private run never draws from a public seed")
    return Draw(submission.plan.run.seed, (name, attempt.stage, attempt.round))
