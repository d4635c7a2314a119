"""Variates: the nodes' control variates in a simulation of SCAFFOLD (server/scaffold.py), in one file in memory.

All processes that train share the file, and it outlives them. A node's new c_i is written beside its old one, and
takes its place when the round is durable and the server took the update: an answer that is lost changes no c_i, so that
c stays their mean, and a round that is done again after a crash begins with what it began with.
"""

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from ..client.bench import Bench
from ..client.draw import Draw
from ..client.node import Workshop
from ..client.randomness import drawn
from ..client.tasks.protocol import Source
from ..client.training import LocalTrainer
from ..privacy.budget.book import DeclaredDataset
from ..privacy.channel import words
from ..privacy.channel.arrays import to_parameters
from ..privacy.parameters import Array, Parameters
from ..privacy.plan import TrainingSection
from ..privacy.submission import Submission
from ..server.checkpoints import State
from .grid import AroundGrid
from .mapped import MappedFile

_PAGE = mmap.PAGESIZE


class Variates:
    """c and the c_i of nodes by name, [d] float32 each, in the order of a model's parameters; at `path`."""

    def __init__(self, path: Path, model: Parameters, names: Sequence[str], training: TrainingSection) -> None:
        self._model = {name: array.shape for name, array in model.items()}
        self._places = {name: place for place, name in enumerate(names)}
        self._reach = training.local_steps * training.learning_rate
        self._path = path
        size, count = sum(array.size for array in model.values()), len(names)
        rounds_bytes = -(-8 * (count + 1) // _PAGE) * _PAGE
        length = rounds_bytes + 4 * size * (2 * count + 1)
        self._file = MappedFile(path, length)  # where a node that never trains takes no room
        memory = self._file.memory
        self._rounds = np.frombuffer(memory, np.int64, count + 1)  # of each new c_i; the last: of c
        rows: NDArray[np.float32] = np.frombuffer(memory, np.float32, offset=rounds_bytes).reshape(-1, size)
        self._control, self._old, self._new = rows[0], rows[1 : count + 1], rows[count + 1 :]
        self._row_bytes, self._rows_begin = 4 * size, rounds_bytes
        self._roomy = set[int]()  # the places of nodes whose rows have theirs on the disk
        self._file.make_room(0, rounds_bytes + self._row_bytes)

    def make_room(self, names: Iterable[str]) -> None:
        """For the c_i of these nodes, before they train; raise CheckpointError where the disk is full."""
        for place in {self._places[name] for name in names} - self._roomy:
            for row in (1 + place, 1 + len(self._places) + place):
                start = self._rows_begin + row * self._row_bytes
                self._file.make_room(start, start + self._row_bytes)
            self._roomy.add(place)

    def hear(self, messages: Iterable[Message]) -> None:
        """Take c from the requests of a round: the same for all. Nobody may be at a request of another round."""
        for message in messages:
            record, config = message.content.get(words.CONTROL), message.content.get(words.CONFIG)
            if isinstance(record, ArrayRecord) and isinstance(config, ConfigRecord):
                control = to_parameters(record)
                self._control[:] = np.concatenate([control[name].reshape(-1) for name in self._model])
                number = config[words.ROUND]
                assert isinstance(number, int), "the federation wrote it"
                self._rounds[-1] = number
                return

    def corrections(self, names: Sequence[str]) -> Tensor:
        """c - c_i of these nodes, [N, d]: what is added to each of their gradients."""
        return torch.from_numpy(self._control - self._old[[self._places[name] for name in names]])

    def correction(self, name: str) -> Parameters:
        """The same of one, by parameter."""
        return self._split(self._control - self._old[self._places[name]])

    def note(self, names: Sequence[str], start: NDArray[np.float32], updates: NDArray[np.float32]) -> None:
        """What these nodes' c_i will be: option II, from the model [d] and what they answer, [N, d]."""
        for name, update in zip(names, updates, strict=True):
            place = self._places[name]
            self._new[place] = self._old[place] - self._control + (start - update) / np.float32(self._reach)
            self._rounds[place] = self._rounds[-1]

    def note_one(self, name: str, start: Parameters, update: Parameters) -> None:
        """The same of one, by parameter."""
        self.note([name], self._joined(start), self._joined(update)[None])

    def settle(self, state: State) -> None:
        """A round is durable: the c_i of those whose updates it took."""
        failures = state.history[-1].failures if state.history else {}
        for name, place in self._places.items():
            if self._rounds[place] == state.round > 0 and name not in failures:
                self._old[place] = self._new[place]
                self._rounds[place] = 0

    def clear(self) -> None:
        """Take the file away: the run is done."""
        self._path.unlink(missing_ok=True)

    def _joined(self, parameters: Parameters) -> NDArray[np.float32]:
        return np.concatenate([parameters[name].reshape(-1) for name in self._model]).astype(np.float32)

    def _split(self, values: NDArray[np.float32]) -> dict[str, Array]:
        ends = np.cumsum([int(np.prod(shape)) for shape in self._model.values()])[:-1]
        parts = zip(self._model.items(), np.split(values, ends), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in parts}


class HearingGrid(AroundGrid):
    """A Grid on whose way to the nodes c is heard. `names`: the nodes' by id."""

    def __init__(self, grid: Grid, variates: Variates, names: Mapping[int, str]) -> None:
        super().__init__(grid)
        self._variates = variates
        self._names = names

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does."""
        asked = list(messages)
        trained = (message.metadata for message in asked if message.metadata.message_type == words.TRAIN)
        self._variates.make_room(self._names[one.dst_node_id] for one in trained if one.dst_node_id in self._names)
        self._variates.hear(asked)
        return self.inner.send_and_receive(asked, timeout=timeout)


class CorrectedTrainer:
    """See node.Trainer: a LocalTrainer of one node whose steps are corrected."""

    def __init__(self, local: LocalTrainer, variates: Variates, name: str) -> None:
        self._local = local
        self._variates = variates
        self._name = name

    def initial(self) -> dict[str, Array]:
        """See node.Trainer."""
        return self._local.initial()

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        """See node.Trainer."""
        update = self._local.train(parameters, drawn(draw), self._variates.correction(self._name))
        self._variates.note_one(self._name, parameters, update)
        return update

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        """See node.Trainer."""
        return self._local.evaluate(parameters, drawn(draw))

    def done(self) -> Mapping[str, str]:
        """See node.Trainer."""
        return self._local.done()


def corrected(bench: Bench, variates: Variates, name: str) -> Workshop:
    """See node.Workshop."""

    def made(submission: Submission, dataset: DeclaredDataset, source: Source) -> CorrectedTrainer:
        local = LocalTrainer(
            bench.trainable(submission, with_gradients=False), submission, source, dataset.declared_size
        )
        return CorrectedTrainer(local, variates, name)

    return made


def settled(variates: Variates, look: Callable[[State], None]) -> Callable[[State], None]:
    """Settle a round that is durable, then look at it."""

    def settle(state: State) -> None:
        variates.settle(state)
        look(state)

    return settle
