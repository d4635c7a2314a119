"""Roster: who takes part in a run, by name; who will not, and why. Nodes may come while the run goes on."""

from collections.abc import Iterable, Iterator

from ..privacy.errors import FederationError, Refusal
from .replies import Failure, Member

NO_ANSWER, OTHER_NAME = "no-answer", "other-name"
# A node that says so may say otherwise tomorrow: it is neither left out for good nor waited for.
PASSING = frozenset({Refusal.PAUSED.value})
# How often a node that gives no answer at all is asked who it is: each time may take a minute.
_MOST_CALLS = 2


class Roster:
    """The nodes of one run. What a node says of itself is believed where the channel says nothing else."""

    def __init__(self) -> None:
        self._refused: dict[int, tuple[str, str]] = {}
        self._members: dict[str, Member] = {}
        self._settled: set[int] = set()
        self._unanswered: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    @property
    def refused(self) -> dict[str, str]:
        """Who will not take part, and the code of the reason."""
        return dict(self._refused.values())

    def members(self) -> list[Member]:
        """All who take part."""
        return list(self._members.values())

    @property
    def is_awaiting(self) -> bool:
        """Whether a node that is there has not said yet whether it takes part."""
        return NO_ANSWER in self.refused.values()

    def ask_again(self) -> None:
        """Those who gave no answer are asked once more: they may have been busy with what was asked before."""
        self._unanswered.clear()

    def strangers(self, present: Iterable[int]) -> list[int]:
        """Those present who must still be asked who they are."""
        return [n for n in present if n not in self._settled and self._unanswered.get(n, 0) < _MOST_CALLS]

    def enter(self, node_id: int, name: str | None, answer: Member | Failure, present: Iterable[int]) -> None:
        """Take down what a node said. `name`: as the channel has it, None where it has none.

        Raises FederationError where two nodes that are both present go by one name.
        """
        if isinstance(answer, Member) and name is not None and answer.name != name:
            answer = Failure(OTHER_NAME)
        if isinstance(answer, Failure):
            self._refuse(node_id, name or f"node {node_id}", answer.code)
            return
        before = self._members.get(answer.name)
        if before is not None and before.node_id in set(present):
            raise FederationError(f"two nodes call themselves {answer.name}", "give each node its own name")
        self._settled.add(node_id)
        self._refused.pop(node_id, None)
        self._members[answer.name] = answer

    def _refuse(self, node_id: int, name: str, code: str) -> None:
        self._refused[node_id] = name, code
        if code == NO_ANSWER:
            self._unanswered[node_id] = self._unanswered.get(node_id, 0) + 1
        elif code not in PASSING:
            self._settled.add(node_id)
