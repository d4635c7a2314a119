"""Shelf: the answers of a simulation's round, in one file that lies in memory, which all its processes share.

An update is written once, into its row, by the process that computed it: there it is kept for a reply that is lost,
hashed, and added up. The file outlives the processes, as a simulation's ledgers do. A row is free again when the next
round begins: by then the round's checkpoint is there.

Where whole nodes are hidden, a single update has no noise, and no reply is asked for again: there the memory has no
file, and ends with the last process.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..client.answers import Answer, Answers
from ..privacy.budget.guard import Attempt
from ..privacy.channel.files import append_lines
from ..privacy.parameters import Array, Parameters
from .mapped import MappedFile

_HEADER_BYTES = mmap.PAGESIZE  # the count of rows in use, and room, so that rows begin where a page does
_FLOAT_BYTES = 4
# Rows a node: a round's first attempts, those of its spare rounds, and what a round before an interruption left behind.
ROWS_OF_NODE = 8
_ROOM_BYTES = 2**20  # for how much at once room is made, where nobody has said how many rows are to be taken


@dataclass(frozen=True, slots=True, eq=False)
class ShelvedAnswer(Answer):
    """An update on the shelf, whose hash is known; `parameters` are views of its row."""

    hash: str = ""


class Shelf:
    """Rows of [d] float32 for updates like `model`, at `path`; begun, or found again after an interruption.

    Without a path they lie in memory alone, and nothing of them can be found again.
    """

    def __init__(self, path: Path | None, model: Parameters, nodes: int) -> None:
        self._slots = list(_slots(model))
        self._size = sum(array.size for array in model.values())
        count = nodes * ROWS_OF_NODE
        length = _HEADER_BYTES + count * self._size * _FLOAT_BYTES
        self._path = path
        self._file = MappedFile(path, length)
        self._file.make_room(0, _HEADER_BYTES)
        memory = self._file.memory
        self._used = np.frombuffer(memory, np.int64, 1)
        self.rows: NDArray[np.float32] = np.frombuffer(memory, np.float32, offset=_HEADER_BYTES).reshape(count, -1)
        self._roomy = 0  # so many rows have their place on the disk
        self._round: int | None = None
        self._row_of: dict[str, int] | None = None  # by hash, once one was looked for
        self._sums_of: dict[str, str] | None = None
        header = {name: list(array.shape) for name, array in model.items()}
        self._prefix = hashlib.sha256(b"privet/update/v1\0" + json.dumps(header).encode() + b"\0")
        self._sums = path.with_suffix(".sums.jsonl") if path is not None else None

    def expect(self, round_number: int, count: int) -> None:
        """Make room for so many more updates of a round; raise CheckpointError where the disk is full."""
        self._begin(round_number)
        self._make_room(min(int(self._used[0]) + count, len(self.rows)))

    def place(self, round_number: int) -> int:
        """A free row. The rows of an earlier round are free when this process has seen that round end.

        Raises MemoryError where all rows are taken, CheckpointError where the disk is full.
        """
        self._begin(round_number)
        row = int(self._used[0])
        if row == len(self.rows):
            raise MemoryError(f"all {row} rows are taken in round {round_number}")
        if row >= self._roomy:
            self._make_room(min(row + 1 + _ROOM_BYTES // (self._size * _FLOAT_BYTES), len(self.rows)))
        self._used[0] = row + 1
        return row

    def hash_of(self, row: int) -> str:
        """SHA-256 over names, shapes and values of the update in a row, hexadecimal."""
        digest = self._prefix.copy()
        digest.update(self.rows[row].data)
        return digest.hexdigest()

    def answer(self, row: int, digest: str) -> ShelvedAnswer:
        """The update in a row, as views."""
        if self._row_of is not None and digest:
            self._row_of[digest] = row
        values = self.rows[row]
        return ShelvedAnswer({name: values[at].reshape(shape) for name, at, shape in self._slots}, hash=digest)

    def find(self, digest: str) -> Answer | None:
        """The answer of that hash, copied out; None where it is not here."""
        if self._row_of is None:
            self._row_of = {self.hash_of(row): row for row in range(int(self._used[0]))}
        row = self._row_of.get(digest)
        if row is None or self.hash_of(row) != digest:  # it may have been changed since
            return self._found_sums(digest)
        return Answer({name: array.copy() for name, array in self.answer(row, digest).parameters.items()})

    def keep_sums(self, sums: Mapping[str, float]) -> str:
        """Keep what a node released of an evaluation; its hash."""
        if self._sums is None:
            raise ValueError("nothing is evaluated, nor kept, where whole nodes are hidden")
        line = json.dumps(sums)
        append_lines(self._sums, f"{line}\n".encode())
        digest = _hash_of_line(line)
        if self._sums_of is not None:
            self._sums_of[digest] = line
        return digest

    def clear(self) -> None:
        """Take the files away: when a run is done no reply can be lost any more."""
        for path in (self._path, self._sums):
            if path is not None:
                path.unlink(missing_ok=True)

    def _begin(self, round_number: int) -> None:
        if self._round is not None and self._round != round_number:
            self._used[0] = 0
            self._row_of = None
        self._round = round_number

    def _make_room(self, rows: int) -> None:
        if rows > self._roomy:
            start, end = (_HEADER_BYTES + count * self._size * _FLOAT_BYTES for count in (self._roomy, rows))
            self._file.make_room(start, end)
            self._roomy = rows

    def _found_sums(self, digest: str) -> Answer | None:
        if self._sums_of is None:
            sums = self._sums
            lines = sums.read_text(encoding="utf-8").splitlines() if sums is not None and sums.exists() else []
            self._sums_of = {_hash_of_line(line): line for line in lines}
        line = self._sums_of.get(digest)
        return None if line is None else Answer(sums=json.loads(line))


class ShelvedAnswers(Answers):
    """The kept answers of one node, on the shelf; those that were made without it lie in the node's own folder."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        super().__init__(folder, survives_power_cut=False)  # nor does a simulation's ledger
        self._shelf = shelf

    def keep(self, run_id: str, attempt: Attempt, answer: Answer) -> str:
        """See Answers."""
        if isinstance(answer, ShelvedAnswer):
            return answer.hash
        return super().keep(run_id, attempt, answer) if answer.parameters else self._shelf.keep_sums(answer.sums)

    def read(self, run_id: str, attempt: Attempt, answer_hash: str) -> Answer:
        """See Answers."""
        return self._shelf.find(answer_hash) or super().read(run_id, attempt, answer_hash)


def _slots(model: Mapping[str, Array]) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
    start = 0
    for name, array in model.items():
        yield name, slice(start, start + array.size), array.shape
        start += array.size


def _hash_of_line(line: str) -> str:
    return hashlib.sha256(b"privet/sums/v1\0" + line.encode()).hexdigest()
