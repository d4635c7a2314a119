"""Kept answers: what a node said, durable before its first byte is sent, so that a lost reply costs no second draw.

A file is safetensors, which holds arrays and text and no code. Only the newest answer of a run's stage is kept: the
server moves on only when it holds the one before.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from ..privacy.budget.guard import Attempt
from ..privacy.channel.files import make_durable
from ..privacy.errors import LedgerError
from ..privacy.parameters import Array

_SUMS = "sums"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What leaves a node for one request: `parameters` after training, or `sums` of metrics over its records."""

    parameters: dict[str, Array] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)


class Answers:
    """The kept answers of one node, in a folder of its own.

    `survives_power_cut`: whether each is on the disk before it counts. Where the ledger itself is not, as in a
    simulation, that would protect nothing; an answer outlives its process either way.
    """

    def __init__(self, folder: Path, survives_power_cut: bool = True) -> None:
        self._folder = folder
        self._survives_power_cut = survives_power_cut

    def keep(self, run_id: str, attempt: Attempt, answer: Answer) -> str:
        """Write it durably; give its SHA-256, hexadecimal."""
        arrays = {name: np.asarray(array, order="C") for name, array in answer.parameters.items()}  # save writes memory
        content = save(arrays, metadata={_SUMS: json.dumps(answer.sums)})
        path = self._path(run_id, attempt)
        partial = path.with_suffix(".partial")
        self._folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            if self._survives_power_cut:
                os.fsync(file.fileno())
        partial.replace(path)
        if self._survives_power_cut:
            make_durable(self._folder)
        self._forget_older(run_id, attempt, keep=path)
        return hashlib.sha256(content).hexdigest()

    def read(self, run_id: str, attempt: Attempt, answer_hash: str) -> Answer:
        """The kept answer; raise LedgerError when it is gone or is not what the ledger says was sent."""
        path = self._path(run_id, attempt)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != answer_hash:
            raise LedgerError(f"{path}: not the answer that the ledger records", "ask with a new attempt number")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return Answer(load(content), json.loads(header["__metadata__"][_SUMS]))

    def _path(self, run_id: str, attempt: Attempt) -> Path:
        return self._folder / f"{_prefix(run_id, attempt)}{attempt.round}-{attempt.number}.safetensors"

    def _forget_older(self, run_id: str, attempt: Attempt, keep: Path) -> None:
        for path in self._folder.glob(f"{_prefix(run_id, attempt)}*.safetensors"):
            if path != keep:
                path.unlink(missing_ok=True)


def _prefix(run_id: str, attempt: Attempt) -> str:
    return f"{run_id}@{attempt.stage}-"  # no run id holds an @: no run's files look like another's
