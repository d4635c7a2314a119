"""Faults: nodes of a simulation that misbehave as `[simulation.faults]` says, the same in every run of one plan.

Faults are of training alone, and of the wire: behind it every node is honest, trains on its records and enters in its
ledger what it did. What goes wrong follows from the plan's seed, the round, the node's name and how often it was asked
in that round; so neither the engine, nor the number of processes, nor a crash changes it.

    drop        the request never arrives: the node does nothing, and spends nothing
    delay       the answer arrives after the round has ended: the attempt is spent, and its update is in no model
    nan         every value of the update is NaN
    flip-signs  model - (update - model)
    scale       model + scale-factor * (update - model)

Who is dropped or delayed is drawn anew with every request. Who lies is drawn once, and lies whenever it answers.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..privacy.channel import words
from ..privacy.channel.arrays import to_parameters, to_record
from ..privacy.channel.files import append_lines
from ..privacy.parameters import Array
from ..privacy.plan import FaultsSection, Lie
from .grid import AroundGrid

DROP, DELAY = "drop", "delay"
KINDS = (DROP, DELAY, "nan", "flip-signs", "scale")


# By round and kind, the names of the nodes that did it.
ByRound = Mapping[int, Mapping[str, list[str]]]


class Deeds:
    """Who did what in which round: a line each in a file, so that a resumed run still has its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: list[str] = []

    def note(self, number: int, kind: str, name: str) -> None:
        """Keep one, with the next `write`. A round that is carried out again after a crash has the same again."""
        self._noted.append(json.dumps([number, kind, name]) + "\n")

    def write(self) -> None:
        """Put into the file what was noted: before the round's checkpoint is written."""
        noted, self._noted = self._noted, []
        if noted:
            append_lines(self._path, "".join(noted).encode())

    def until(self, last_round: int) -> ByRound:
        """By round and kind the names of those who did it, each once, in order; later rounds are of a lost try."""
        found = {deed for deed in self._read() if deed[0] <= last_round}
        rounds: dict[int, dict[str, list[str]]] = {}
        for number, kind, name in sorted(found, key=lambda deed: (deed[0], KINDS.index(deed[1]), deed[2])):
            rounds.setdefault(number, {}).setdefault(kind, []).append(name)
        return rounds

    def _read(self) -> Iterator[tuple[int, str, str]]:
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # torn by a crash; its round is done again
                number, kind, name = json.loads(line)
                yield int(number), str(kind), str(name)


class Faults:
    """The faults of one run. As a `Fault` it sees every answer on its way; `reaches` says which requests arrive."""

    def __init__(self, section: FaultsSection, seed: int, names: Mapping[int, str], deeds: Deeds) -> None:
        self._section = section
        self._seed = seed
        self._names = dict(names)
        self._liars = liars(section, seed, self._names.values())
        self._round = 0
        self._asked: dict[str, int] = {}
        self.deeds = deeds

    def reaches(self, request: Message) -> bool:
        """Whether the node gets to see it."""
        name = self._begun(request)
        if name is None:
            return True
        self._asked[name] = self._asked.get(name, 0) + 1
        is_dropped = self._chance(name) < self._section.drop
        if is_dropped:
            self.deeds.note(self._round, DROP, name)
        return not is_dropped

    def __call__(self, request: Message, reply: Message) -> Message | None:
        """What arrives of an answer; see grid.Fault."""
        name = self._begun(request)
        if name is None or not reply.has_content():
            return reply
        if self._chance(name) < self._section.drop + self._section.delay:
            self.deeds.note(self._round, DELAY, name)
            return None
        if name not in self._liars:
            return reply
        self.deeds.note(self._round, self._liars[name], name)
        lie = _LIES[self._liars[name]]
        return _told(request, reply, lambda model, update: lie(model, update, self._section.scale_factor))

    def _begun(self, request: Message) -> str | None:
        """The node that is asked to train, with the memory of its round; None for whatever else it is asked."""
        config = request.content.get(words.CONFIG)
        if request.metadata.message_type != words.TRAIN or not isinstance(config, ConfigRecord):
            return None
        number = config[words.ROUND]
        assert isinstance(number, int), "the federation wrote it"
        if number != self._round:
            self._round, self._asked = number, {}
        return self._names.get(request.metadata.dst_node_id)

    def _chance(self, name: str) -> float:
        return _uniform(self._seed, "fault", self._round, name, self._asked.get(name, 0))


class LossyGrid(AroundGrid):
    """A Grid on which requests to train get lost. Who is lost in a round is there in the next."""

    def __init__(self, grid: Grid, faults: Faults) -> None:
        super().__init__(grid)
        self._faults = faults

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """The replies to those that arrive."""
        arriving = [message for message in messages if self._faults.reaches(message)]
        try:
            yield from self.inner.send_and_receive(arriving, timeout=timeout)
        finally:
            self._faults.deeds.write()


def liars(section: FaultsSection, seed: int, names: Collection[str]) -> dict[str, Lie]:
    """Which nodes lie, and how."""
    drawn = iter(sorted(names, key=lambda name: _uniform(seed, "liar", name)))
    counts = section.liars(len(names))
    return {next(drawn): lie for lie, count in counts.items() for _ in range(count)}


def _uniform(seed: int, *labels: str | int) -> float:
    """In [0, 1), of 53 bits."""
    digest = hashlib.sha256("/".join(map(str, ("privet", *labels, seed))).encode()).digest()
    return float(int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53


def _told(request: Message, reply: Message, lie: Callable[[Array, Array], Array]) -> Message:
    """The reply with another update in it; the rest, the head of its ledger too, is the node's."""
    model, update = request.content[words.ARRAYS], reply.content[words.ARRAYS]
    assert isinstance(model, ArrayRecord), "a federation sends a model to train on"
    assert isinstance(update, ArrayRecord), "a node answers with one"
    sent, honest = to_parameters(model), to_parameters(update)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinity is a lie like any other: the server refuses it
        lies = {name: lie(sent[name], array) for name, array in honest.items()}
    reply.content = RecordDict({**reply.content, words.ARRAYS: to_record(lies)})
    return reply


_LIES: dict[Lie, Callable[[Array, Array, float], Array]] = {
    "nan": lambda model, update, factor: np.full_like(update, np.nan),
    "flip-signs": lambda model, update, factor: model - (update - model),
    "scale": lambda model, update, factor: model + np.float32(factor) * (update - model),
}
