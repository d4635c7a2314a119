"""Roster: who takes part in a run, by name; who will not, and why. Nodes may come while the run goes on.

A node that refused is not asked again, but for one thing: a refusal by its institution's policy, or by a person there,
may be taken back. The node's presence has another `revision` then, and it is asked anew.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..privacy.errors import FederationError, Refusal
from .replies import Failure, Member

NO_ANSWER, OTHER_NAME = "no-answer", "other-name"
NO_MEMBER = "no-member"  # revoked, or it left the federation
# A node that says so may say otherwise tomorrow: it is neither left out for good nor waited for while others suffice.
PASSING = frozenset({Refusal.PAUSED.value})
# What an institution's rules and people say: asked again when the node says that they have changed, and not before.
REVISED = frozenset(
    {Refusal.POLICY_DENIED.value, Refusal.APPROVAL_PENDING.value, Refusal.APPROVAL_REFUSED.value, *PASSING}
)
# Somebody has not spoken yet: a run that lacks nodes waits for these.
AWAITED = frozenset({Refusal.APPROVAL_PENDING.value, *PASSING})
# How often a node that gives no answer at all is asked who it is: each time may take a minute.
_MOST_CALLS = 2

Revisions = Mapping[int, str]  # by node, as its presence says; nothing where nodes do not change their minds


@dataclass(frozen=True, slots=True)
class _Refusal:
    name: str
    failure: Failure
    revision: str


class Roster:
    """The nodes of one run. What a node says of itself is believed where the channel says nothing else."""

    def __init__(self) -> None:
        self._refused: dict[int, _Refusal] = {}
        self._members: dict[str, Member] = {}
        self._settled: set[int] = set()
        self._unanswered: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    @property
    def refused(self) -> dict[str, Failure]:
        """Who will not take part, and why."""
        return {one.name: one.failure for one in self._refused.values()}

    def members(self) -> list[Member]:
        """All who take part."""
        return list(self._members.values())

    @property
    def is_awaiting(self) -> bool:
        """Whether a node that is there has not said yet whether it takes part."""
        return any(failure.code == NO_ANSWER for failure in self.refused.values())

    @property
    def awaited(self) -> dict[str, Failure]:
        """Who may yet take part, once somebody there has spoken."""
        return {name: failure for name, failure in self.refused.items() if failure.code in AWAITED}

    def dismiss(self, has_left: Callable[[int], bool]) -> bool:
        """Whether any of those who are awaited have left the federation: they are not awaited any more.

        Whoever joins it again is asked like one that was never there.
        """
        gone = [n for n, one in self._refused.items() if one.failure.code in AWAITED and has_left(n)]
        for node_id in gone:
            self._refused[node_id] = replace(self._refused[node_id], failure=Failure(NO_MEMBER))
            self._settled.discard(node_id)
        return bool(gone)

    def ask_again(self) -> None:
        """Those who gave no answer are asked once more: they may have been busy with what was asked before."""
        self._unanswered.clear()

    def strangers(self, present: Iterable[int], revisions: Revisions | None = None) -> list[int]:
        """Those present who must still be asked who they are, or once more."""
        revisions = revisions or {}
        return [n for n in present if self._is_unsettled(n, revisions) and self._unanswered.get(n, 0) < _MOST_CALLS]

    def enter(
        self, node_id: int, name: str | None, answer: Member | Failure, present: Iterable[int], revision: str = ""
    ) -> None:
        """Take down what a node said. `name`: as the channel has it, None where it has none.

        `revision`: of the node, when it was asked. Raises FederationError where two nodes that are both present go by
        one name.
        """
        if isinstance(answer, Member) and name is not None and answer.name != name:
            answer = Failure(OTHER_NAME)
        if isinstance(answer, Failure):
            self._refuse(node_id, _Refusal(name or f"node {node_id}", answer, revision))
            return
        before = self._members.get(answer.name)
        if before is not None and before.node_id in set(present):
            raise FederationError(f"two nodes call themselves {answer.name}", "give each node its own name")
        self._settled.add(node_id)
        self._refused.pop(node_id, None)
        self._members[answer.name] = answer

    def leave(self, name: str, why: Failure, revisions: Revisions) -> None:
        """A member's rules keep it from what it was asked: it takes part again when they let it."""
        node_id = self._members.pop(name).node_id
        self._refuse(node_id, _Refusal(name, why, revisions.get(node_id, "")))

    def _is_unsettled(self, node_id: int, revisions: Revisions) -> bool:
        if node_id not in self._settled:
            return True
        refusal = self._refused.get(node_id)
        return (
            refusal is not None
            and refusal.failure.code in REVISED
            and node_id in revisions
            and refusal.revision != revisions[node_id]
        )

    def _refuse(self, node_id: int, refusal: _Refusal) -> None:
        self._refused[node_id] = refusal
        code = refusal.failure.code
        if code == NO_ANSWER:
            self._unanswered[node_id] = self._unanswered.get(node_id, 0) + 1
        elif code in PASSING:
            self._settled.discard(node_id)
        else:
            self._settled.add(node_id)
