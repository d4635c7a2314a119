"""What a round brings in: updates in answers, or held by the engine that made them; and who is missing, and why."""

from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from ..privacy.channel import words
from ..privacy.parameters import Parameters
from .aggregation import HeldUpdates, RunningAverage
from .replies import Failure


class Held(HeldUpdates, Protocol):
    """Updates that do not travel, since the engine that made them adds them up: see aggregation.HeldUpdates."""

    def holds(self, reply: Message) -> bool:
        """Whether this answer's update is held, finite and like the model that was sent; else it is in the answer."""
        ...

    def update_of(self, node_id: int) -> Parameters:
        """The update that this node has just answered with, where it lies: good until the next round."""
        ...


@dataclass(frozen=True, slots=True)
class HeldUpdate:
    """In the place of an update that is held: whose it is."""

    node_id: int


@dataclass(slots=True)
class Gathered:
    """What a round has brought in so far. `missing`: who has not answered, and why."""

    average: RunningAverage | None
    kept: list[Message] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    missing: dict[str, Failure] = field(default_factory=dict)


def restated(reply: Message, arrays: ArrayRecord, weight: int) -> Message:
    """The reply with nothing in it but what was checked, and with the weight that was declared before the run."""
    reply.content = RecordDict({words.ARRAYS: arrays, words.METRICS: MetricRecord({words.DECLARED_SIZE: weight})})
    return reply
