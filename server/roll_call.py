"""The roll call of a run: who is there is asked who it is, and those who may change their minds are waited for."""

from collections.abc import Callable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from .attendances import Attendances
from .events import Awaited, RollCalled, Tell
from .minds import Minds
from .replies import Failure, Member, attendance_of, member_of
from .roster import NO_ANSWER, REVISED, Revisions, Roster

NameOf = Callable[[int], str]


class RollCall:
    """Keeps a roster. `request`: what a node is asked, by its number; `patience`: seconds for the answers.

    `name_of`: a node's name as the channel knows it; without it a node's own word counts. `minds`: waits until a node
    may have changed its mind; without it none does.
    """

    def __init__(
        self,
        grid: Grid,
        request: Callable[[int], Message],
        patience: float | None,
        tell: Tell,
        name_of: NameOf | None = None,
        minds: Minds | None = None,
    ) -> None:
        self.roster = Roster()
        self.attendances = Attendances()
        self._grid = grid
        self._request = request
        self._patience = patience
        self._tell = tell
        self._name_of = name_of
        self._minds = minds
        self._revisions: Revisions = {}  # as they were before the roll was called

    def call(self) -> None:
        """Every node that has come since says its name and declared size, or why it will not."""
        self._revisions = self._minds.revisions() if self._minds else {}
        present = list(self._grid.get_node_ids())
        asked = set(self.roster.strangers(present, self._revisions))
        messages = [self._request(node_id) for node_id in sorted(asked)]
        for reply in self._grid.send_and_receive(messages, timeout=self._patience) if messages else ():
            node_id = reply.metadata.src_node_id
            if node_id in asked:
                asked.remove(node_id)
                self.attendances.note(node_id, attendance_of(reply))
                self._enter(node_id, member_of(reply), present)
        for node_id in sorted(asked):
            self._enter(node_id, Failure(NO_ANSWER), present)
        if messages:
            self._tell_roll()

    def wait(self, are_enough: Callable[[], bool]) -> None:
        """Where too few take part, wait for those who have not spoken yet; return where there is none of them."""
        awaited = dict[str, Failure]()
        while self._minds is not None and not are_enough() and (awaited := self._awaited(self._minds)):
            self._tell(Awaited(texts_of(awaited)))
            self._minds.wait(self._revisions)
            self.call()
        if awaited:
            self._tell(Awaited({}))

    def let_leave(self, failures: Mapping[str, Failure]) -> list[str]:
        """Take from the roster whom its institution's rules keep from what was asked; it comes back when they let it.

        Gives their names.
        """
        leaving = [name for name, why in failures.items() if why.code in REVISED and name in self.roster]
        for name in leaving:
            self.roster.leave(name, failures[name], self._revisions)
        if leaving:
            self._tell_roll()
        return leaving

    def _awaited(self, minds: Minds) -> dict[str, Failure]:
        """Who may yet take part; whoever is no member any more may not."""
        if self.roster.dismiss(minds.has_left):
            self._tell_roll()
        return self.roster.awaited

    def _enter(self, node_id: int, answer: Member | Failure, present: list[int]) -> None:
        name = self._name_of(node_id) if self._name_of else None
        self.roster.enter(node_id, name, answer, present, self._revisions.get(node_id, ""))

    def _tell_roll(self) -> None:
        self._tell(RollCalled(tuple(self.roster), texts_of(self.roster.refused)))


def texts_of(failures: Mapping[str, Failure]) -> dict[str, str]:
    """Why, by name, as it is shown and kept."""
    return {name: why.text for name, why in failures.items()}
