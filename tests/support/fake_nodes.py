"""Fakes on the real seam: a Flower ClientApp of small numpy nodes, each with its own manners, over the LocalGrid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from privet.privacy.channel import words
from privet.privacy.channel.arrays import to_parameters, to_record
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints, State
from privet.server.federation import Federation
from privet.simulations.grid import Fault, LocalGrid

Trained = Callable[[dict[str, np.ndarray], int, int], RecordDict | str]


@dataclass
class FakeNode:
    """`step`: what it adds to every value in a round. `train` may give an error code instead, or any content."""

    name: str
    declared_size: int = 10
    step: float = 1.0
    train: Trained | None = None
    initial: float = 0.0
    accuracy: float = 0.5
    describe: Callable[[Message], RecordDict | str] | None = None
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def trained(self, model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict | str:
        if self.train is not None:
            return self.train(model, number, attempt)
        return update_of({name: array + np.float32(self.step) for name, array in model.items()}, self.declared_size)


def update_of(parameters: dict[str, np.ndarray], weight: int = 10) -> RecordDict:
    metrics = MetricRecord({words.DECLARED_SIZE: weight})
    return RecordDict({words.ARRAYS: to_record(parameters), words.METRICS: metrics})


def grid_of(nodes: Sequence[FakeNode], fault: Fault | None = None) -> LocalGrid:
    by_id = {100 + place: node for place, node in enumerate(nodes)}
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        node = by_id[context.node_id]
        said = node.describe(message) if node.describe else ""
        if said:
            return Message(Error(words.REFUSED, said) if isinstance(said, str) else said, reply_to=message)
        facts = ConfigRecord({words.NAME: node.name, words.DECLARED_SIZE: node.declared_size})
        return Message(RecordDict({words.CONFIG: facts}), reply_to=message)

    @app.query("initial")
    def initial(message: Message, context: Context) -> Message:
        value = by_id[context.node_id].initial
        model = {"w": np.full((2, 2), value, np.float32), "b": np.full((2,), value, np.float32)}
        return Message(RecordDict({words.ARRAYS: to_record(model)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = by_id[context.node_id]
        config, arrays = message.content[words.CONFIG], message.content[words.ARRAYS]
        assert isinstance(arrays, ArrayRecord)
        number, attempt = int(config[words.ROUND]), int(config[words.ATTEMPT])  # type: ignore[call-overload, index]
        node.asked.append(("train", number, attempt))
        answer = node.trained(to_parameters(arrays), number, attempt)
        if isinstance(answer, str):
            return Message(Error(words.REFUSED, answer), reply_to=message)
        return Message(answer, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        node = by_id[context.node_id]
        config = message.content[words.CONFIG]
        node.asked.append(("evaluate", int(config[words.ROUND]), int(config[words.ATTEMPT])))  # type: ignore[call-overload, index]
        sums = {"accuracy": node.accuracy * node.declared_size, words.DECLARED_SIZE: node.declared_size}
        return Message(RecordDict({words.METRICS: MetricRecord(sums)}), reply_to=message)

    contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in by_id}
    return LocalGrid(app, contexts, fault)


def run(
    submission: Submission, nodes: Sequence[FakeNode], folder: Path, fault: Fault | None = None
) -> tuple[State, list[State]]:
    """The last state, and every state that was watched."""
    watched: list[State] = []
    checkpoints = Checkpoints(folder, submission.hash)
    state = Federation(submission, grid_of(nodes, fault), checkpoints, watched.append).run()
    return state, watched
