"""Onlooker: scores each round's model on records that no node owns, and accounts for it, while the nodes train the
next one already.
"""

from collections.abc import Callable
from decimal import Decimal

from ..client.training import TrainableModel, held_out_scores
from ..privacy.submission import Submission
from ..server.checkpoints import State
from .cohort_work import CohortWork
from .crew import Crew
from .undisturbed import undisturbed
from .views import RoundView, Views, executed_by
from .world import World

# The view of a state, given its scores and its epsilon, where one is told.
ViewOf = Callable[[State, dict[str, float], Decimal | None], RoundView]


class Onlooker:
    """Adds to `views` what it sees, and shows it to `watch`. With a crew of several, the last round's view comes late:
    `catch_up` brings it.
    """

    def __init__(
        self,
        submission: Submission,
        trainable: TrainableModel,
        world: World,
        attempts_of: Callable[[State], int | None],
        view_of: ViewOf,
        views: Views,
        watch: Callable[[RoundView], None],
        work: CohortWork | None,
        crew: Crew | None,
    ) -> None:
        """`attempts_of`: those of a state whose epsilon is told; None where none is."""
        self._submission = submission
        self._attempts_of = attempts_of
        self._trainable = trainable
        self._world = world
        self._view_of = view_of
        self._views = views
        self._watch = watch
        self._work = work
        self._crew = crew
        self._pending: tuple[State, int] | None = None

    def look(self, state: State) -> None:
        """A round is durable."""
        self.catch_up()
        if self._work is None or self._crew is None or len(self._crew) == 1:
            self._look_here(state)
        else:
            order = self._work.look_order(state.model, self._attempts_of(state), state.round)
            self._pending = state, self._crew.give(order)

    def catch_up(self) -> None:
        """Show what has not been shown."""
        if self._pending is not None and self._crew is not None:
            state, ticket = self._pending
            self._crew.wait(ticket)
            with undisturbed():  # or what is seen would be lost to Ctrl-C
                seen, self._pending = self._crew.take(ticket), None
            if "failed" in seen:
                self._look_here(state)
            else:
                self._show(state, seen["scores"], Decimal(seen["epsilon"]) if seen["epsilon"] is not None else None)

    def _look_here(self, state: State) -> None:
        scores = held_out_scores(self._trainable, state.model, self._world.held_out)
        self._show(state, dict(scores), executed_by(self._submission, self._attempts_of(state), state.round))

    def _show(self, state: State, scores: dict[str, float], epsilon: Decimal | None) -> None:
        view = self._view_of(state, scores, epsilon)
        self._views.add(view)
        self._watch(view)
