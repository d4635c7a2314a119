"""Onlooker: scores each round's model on records that no node owns, while the nodes train the next one already."""

from collections.abc import Callable

from ..client.training import TrainableModel, held_out_scores
from ..privacy.parameters import Parameters
from ..server.checkpoints import State
from .cohort_work import CohortWork
from .crew import Crew
from .views import RoundView, Views
from .world import World

# The view of a state, given its scores.
ViewOf = Callable[[State, dict[str, float]], RoundView]


class Onlooker:
    """Adds to `views` what it sees, and shows it to `watch`. With a crew of several, the last round's view comes late:
    `catch_up` brings it.
    """

    def __init__(
        self,
        trainable: TrainableModel,
        world: World,
        view_of: ViewOf,
        views: Views,
        watch: Callable[[RoundView], None],
        work: CohortWork | None,
        crew: Crew | None,
    ) -> None:
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
            self._show(state, self._scores(state.model))
        else:
            self._pending = state, self._crew.give(self._work.score_order(state.model))

    def catch_up(self) -> None:
        """Show what has not been shown."""
        if self._pending is not None and self._crew is not None:
            state, ticket = self._pending
            self._pending = None
            scores = self._crew.take(ticket)
            self._show(state, scores["scores"] if "scores" in scores else self._scores(state.model))

    def _scores(self, model: Parameters) -> dict[str, float]:
        return dict(held_out_scores(self._trainable, model, self._world.held_out))

    def _show(self, state: State, scores: dict[str, float]) -> None:
        view = self._view_of(state, scores)
        self._views.add(view)
        self._watch(view)
