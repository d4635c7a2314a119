"""A node of a run that hides whole nodes: it trains, clips its update, and says whether there was anything to clip.

It has no ledger and keeps no budget. What hides it is the noise that the server adds to the sum, and the budget is the
server's (server/central.py): so this is no party for an institution that does not trust the server, and none but a
simulation has it. It costs no files and little memory, so that there may be tens of thousands.

What it sends is clipped here already. The server clips again, since a node may lie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..privacy.budget.book import DeclaredDataset
from ..privacy.budget.decisions import Cohort
from ..privacy.budget.guard import Attempt
from ..privacy.budget.witness import Countersigned
from ..privacy.channel.words import WITHIN
from ..privacy.errors import Refusal, RefusedError
from ..privacy.parameters import Array, Parameters
from ..privacy.submission import Submission
from .answers import Answer
from .draw import Draw
from .node import Begun, Carried, Request, Workshop
from .update_clipping import clip_updates

if TYPE_CHECKING:
    from .tasks.protocol import Source


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """What all nodes of one such run share: the submission that they were made for, and where it is trained.

    `draw`: what a node draws from, by its name, the round and the attempt.
    """

    submission: Submission
    workshop: Workshop
    draw: Callable[[str, Attempt], Draw]


class CentralNode:
    """One node of the crowd; see participant.Participant."""

    __slots__ = ("_crowd", "_source", "dataset", "name")

    def __init__(self, name: str, crowd: Crowd, source: "Source", dataset: DeclaredDataset) -> None:
        self.name = name
        self.dataset = dataset
        self._crowd = crowd
        self._source = source

    def consider(self, request: Request) -> None:
        """See Participant. Its one submission, and no other."""
        if request.submission != self._crowd.submission.canonical:
            raise RefusedError(Refusal.OTHER_SUBMISSION, f"node {self.name} was made for another run", "begin anew")

    def answer(self, request: Request) -> Answer:
        """See Participant."""
        begun = self.begin(request)
        return begun if isinstance(begun, Answer) else self.finish(begun, self.carry_out(begun))

    def begin(self, request: Request) -> Begun | Answer:
        """See Participant. Nothing is spent here: the server began the round in its own ledger before it asked."""
        self.consider(request)
        trainer = self._crowd.workshop(self._crowd.submission, self.dataset, self._source)
        if request.stage == "initial":
            return Answer(trainer.initial())
        if request.stage != "train" or request.clip_norm is None:
            raise RefusedError(
                Refusal.MALFORMED_REQUEST, f"malformed request: {request.stage} without a clip norm", "ask the server"
            )
        attempt = Attempt("train", request.round, request.attempt, "")
        draw = self._crowd.draw(self.name, attempt)
        return Begun(request, self._crowd.submission, attempt, Cohort(), trainer, draw)

    def carry_out(self, begun: Begun) -> Carried:
        """See Participant; raises RefusedError where the task fails."""
        start, clip_norm = begun.request.parameters, begun.request.clip_norm
        assert clip_norm is not None, "begin asks for it"
        try:
            trained = begun.trainer.train(start, begun.draw)
        except Exception as error:
            raise RefusedError(
                Refusal.TASK_FAILED, f"the task failed: {type(error).__name__}: {error}", "see the local log"
            ) from error
        update, within = clipped_update(start, trained, clip_norm)
        return Carried(Answer(update, {WITHIN: float(within)}), begun.trainer.done())

    def finish(self, begun: Begun, carried: Carried) -> Answer:
        """See Participant. It keeps nothing: a reply that is lost adds nothing to the round."""
        return carried.answer

    def head(self, witnessed: Countersigned | None) -> None:
        """See Participant."""

    def witness(self, countersigned: Countersigned) -> None:
        """See Participant."""

    def close(self) -> None:
        """See Participant."""


def clipped_update(start: Parameters, trained: Parameters, clip_norm: float) -> tuple[dict[str, Array], bool]:
    """The trained parameters with their distance from `start` clipped, and whether they were within it before."""
    values = _joined(trained)
    within = clip_updates(_joined({name: start[name] for name in trained}), values.unsqueeze(0), clip_norm)
    parts = torch.split(values, [array.size for array in trained.values()])
    shaped = zip(trained.items(), parts, strict=True)
    return {name: part.numpy().reshape(array.shape) for (name, array), part in shaped}, bool(within[0])


def _joined(parameters: Parameters) -> torch.Tensor:
    """In the order of names in `parameters`, copied. [d] float32."""
    return torch.cat([torch.tensor(array).reshape(-1) for array in parameters.values()])
