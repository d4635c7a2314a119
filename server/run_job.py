"""Job: a run as whoever carries it out has it: what was asked, over which grid, in which folder, and whom to tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..privacy.plan_app import AnySubmission
from ..privacy.signed import SignedSubmission
from .run_book import RunBook
from .run_folder import RunFolder
from .run_grid import RunGrid
from .run_notices import Notices
from .run_record import RunRecord, RunState

Standing = Mapping[str, Any]
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One run under way. It is carried out in a thread of its own; `grid` raises InterruptedRunError when stopped."""

    submission: AnySubmission
    signed: SignedSubmission
    folder: RunFolder
    grid: RunGrid
    book: RunBook
    notices: Notices
    move: Callable[[RunState], RunRecord]

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.submission.run_id

    def wait_for_nodes(self, least: int) -> None:
        """Wait until so many fit nodes are connected; the run is `waiting` meanwhile, and `running` then."""
        self.move(RunState.WAITING)
        self.grid.wait_for_nodes(least)
        self.move(RunState.RUNNING)

    def wait_again(self, least: int) -> None:
        """The same for a run that is `running`: it returns at once where nobody is missing."""
        if len(list(self.grid.get_node_ids())) < least:
            self.wait_for_nodes(least)

    def record(self) -> RunRecord:
        """The run as the book has it."""
        return self.book.record(self.run_id)

    def tell(self, kind: str, body: Body, *, round_number: int | None = None, standing: Standing | None = None) -> None:
        """An event that lasts. Some milliseconds: for what happens once a round, not once an answer."""
        self.book.tell(self.run_id, kind, body, round_number=round_number, standing=standing)
        self.notices.tell(self.run_id)

    def mention(self, kind: str, body: Body) -> None:
        """Something in passing, for those who look on at this moment."""
        self.notices.tell(self.run_id, {"kind": kind, "body": dict(body)})


# Carries a run out to its end, and gives what stands in the book of it afterwards.
CarryOut = Callable[[Job], Standing]
