"""What happens in a run, as it happens: for whoever looks on. Everything here is public."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RollCalled:
    """Nodes have said who they are. `refused`: who will not take part, and why, as it is shown."""

    members: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Awaited:
    """Too few take part, and the run waits for these to change their minds, each with why it will not; or no more."""

    nodes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """The cohort of a round was chosen."""

    round: int
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A node's update was added. `bytes`: of its arrays; `seconds`: since it was asked."""

    round: int
    node: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Missed:
    """A node gave no update: the code of its refusal, or what the server calls it. It may be asked again.

    `disclosed`: what its institution lets be told of it.
    """

    round: int
    node: str
    code: str
    disclosed: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The released metrics of a round, as means over the declared records of those who answered."""

    round: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Saved:
    """The checkpoint of a round is durable: it will not be done again."""

    round: int


Happening = RollCalled | Awaited | RoundBegun | Answered | Missed | Evaluated | Saved
Tell = Callable[[Happening], None]


def unheard(_: Happening) -> None:
    """Nobody looks on."""
