"""What the simulator saw of each round, kept beside the run so that a resumed one still has its beginning."""

import json
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from ..privacy.budget.charge import executed_epsilon
from ..privacy.channel.files import append_lines
from ..privacy.submission import Submission


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round as the simulator sees it. `scores`: loss and metrics on held-out records, which no deployment has.

    `epsilon_executed`: the largest node's so far, at the plan's delta, unit and relation; None where no claim is made,
    and for some of the rounds of a long run. `answered`: where whole nodes are hidden, this too no one else may see.
    """

    round: int
    scores: dict[str, float]
    epsilon_executed: Decimal | None
    answered: int
    released: dict[str, float]


def executed_by(submission: Submission, attempts: int | None, rounds: int) -> Decimal | None:
    """What so many attempts of a node, and the evaluations of so many rounds, have cost it; see `executed_epsilon`.
    None where nothing is to be told of any attempts, and without a claim.
    """
    claim = submission.claim
    if claim is None or attempts is None:
        return None
    return executed_epsilon(submission.plan, claim.noise_multiplier, attempts, rounds)


class Views:
    """The views of one run, a line each in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_round = {view.round: view for view in _read(path)}

    def add(self, view: RoundView) -> None:
        """Keep the view; one of a round that was seen before takes its place."""
        self._by_round[view.round] = view
        line = asdict(view) | {
            "epsilon_executed": str(view.epsilon_executed) if view.epsilon_executed is not None else None
        }
        append_lines(self._path, f"{json.dumps(line)}\n".encode())

    def until(self, last_round: int) -> list[RoundView]:
        """All views up to a round, in order: later ones may be of a try that was lost."""
        return [self._by_round[number] for number in sorted(self._by_round) if number <= last_round]


def _read(path: Path) -> list[RoundView]:
    if not path.exists():
        return []
    views = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue  # torn by a crash; its round is done again
        executed = told.pop("epsilon_executed")
        views.append(RoundView(**told, epsilon_executed=Decimal(executed) if executed is not None else None))
    return views
