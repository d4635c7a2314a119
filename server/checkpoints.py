"""Checkpoints: where a run stands, one file a round, written whole or not at all.

A file is safetensors (arrays and text, no code): the model's arrays, the strategy's, and the public history. It names
the submission that it belongs to; a checkpoint of another submission is refused.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..privacy.channel.files import make_durable
from ..privacy.errors import CheckpointError
from ..privacy.parameters import Parameters

FORMAT = "1"
# The newest may be lost with the disk's last write; the one before is complete.
KEPT = 2
_MODEL, _STRATEGY = "model/", "strategy/"


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did, for everyone to see. `metrics`: released by the nodes, noised where a claim is made."""

    round: int
    answered: int
    failures: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A run after `round` rounds: the model, what the strategy remembers, how often each node was asked to train.

    `trained`: the nodes whose update is in it, in order of name.
    """

    round: int
    model: Parameters
    strategy: dict[str, NDArray[Any]]
    participations: dict[str, int]
    excluded: dict[str, str]
    history: tuple[RoundReport, ...]
    trained: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one submission, in a folder of their own.

    `survives_power_cut`: False where the nodes' ledgers do not either, which is in simulations: those outlive their
    process, and a power cut may take the newest.
    """

    def __init__(self, folder: Path, submission_hash: str, survives_power_cut: bool = True) -> None:
        self._folder = folder
        self._submission_hash = submission_hash
        self._survives_power_cut = survives_power_cut
        self._written: list[tuple[RoundReport, str]] = []  # of the last state: each report, and what was written of it
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror}", "give a folder that can be written") from None

    def save(self, state: State) -> None:
        """Write the state durably; forget all but the newest `KEPT`."""
        arrays = {_MODEL + name: np.asarray(array, order="C") for name, array in state.model.items()}
        arrays |= {_STRATEGY + name: np.asarray(array, order="C") for name, array in state.strategy.items()}
        path = self._path(state.round)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(save(arrays, metadata=self._metadata(state)))
                file.flush()
                if self._survives_power_cut:
                    os.fsync(file.fileno())
            partial.replace(path)
            if self._survives_power_cut:
                make_durable(self._folder)  # before an older one is forgotten
            for older in self._paths()[:-KEPT]:
                older.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}", "free space, then resume") from None

    def newest(self) -> State | None:
        """The newest complete state, or None where there is none. Raises CheckpointError for another submission's."""
        for path in reversed(self._paths()):
            state = self._read(path)
            if state is not None:
                return state
        return None

    def _read(self, path: Path) -> State | None:
        try:
            content = path.read_bytes()
            arrays = load(content)
            metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            told = json.loads(metadata["state"])
        except (OSError, SafetensorError, ValueError, KeyError):
            return None  # torn by a crash: the one before is whole
        if metadata["format"] != FORMAT or metadata["submission"] != self._submission_hash:
            raise CheckpointError(
                f"{path}: belongs to submission {metadata['submission'][:12]}, not {self._submission_hash[:12]}",
                "resume with the plan that the run was begun with, or begin a new one in another folder",
            )
        return State(
            round=told["round"],
            model={name: arrays[_MODEL + name] for name in told["model"]},
            strategy={name.removeprefix(_STRATEGY): a for name, a in arrays.items() if name.startswith(_STRATEGY)},
            participations=told["participations"],
            excluded=told["excluded"],
            history=tuple(RoundReport(**report) for report in told["history"]),
            trained=tuple(told.get("trained", told["participations"])),  # a file that lacks it is older
        )

    def _metadata(self, state: State) -> dict[str, str]:
        told = {
            "round": state.round,
            "model": list(state.model),  # the order of names, which safetensors does not keep
            "participations": state.participations,
            "excluded": state.excluded,
            "trained": list(state.trained),
        }
        text = f'{json.dumps(told)[:-1]}, "history": [{", ".join(self._history(state.history))}]}}'
        return {"format": FORMAT, "submission": self._submission_hash, "state": text}

    def _history(self, history: tuple[RoundReport, ...]) -> Iterator[str]:
        """Each report as JSON; one that the last checkpoint held already is not written anew, or a long run would
        spend its rounds on its past.
        """
        for place, report in enumerate(history):
            if place == len(self._written) or self._written[place][0] is not report:
                self._written[place:] = [(report, _report_text(report))]
            yield self._written[place][1]

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.safetensors"


def _report_text(report: RoundReport) -> str:
    told = {"round": report.round, "answered": report.answered, "failures": report.failures, "metrics": report.metrics}
    return json.dumps(told)
