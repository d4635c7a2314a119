"""The folder of a run: plan, submission, checkpoints, model. What is needed to go on is written first, and whole."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..privacy.channel.files import write_whole
from ..privacy.envelope import SUBMISSION_BYTES
from ..privacy.errors import CheckpointError
from ..privacy.plan import Plan
from ..privacy.plan_file import plan_text, read_plan
from ..privacy.submission import Submission
from .checkpoints import Checkpoints, State


class RunFolder:
    """Paths of one run, and the reading and writing of what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "plan.toml"
        self.submission = root / "submission.json"
        self.model = root / "model.safetensors"

    def begin(self, plan: Plan, submission: Submission) -> None:
        """Write what a run must have to be resumed; raise CheckpointError where the folder is taken or unwritable."""
        if self.submission.exists():
            raise CheckpointError(
                f"{self.root}: a run was begun here",
                f"privet simulate --resume {self.root}, or give another folder",
            )
        self._write(self.plan, plan_text(plan).encode())
        self._write(self.submission, submission.canonical)

    def read(self) -> tuple[Plan, Submission]:
        """The plan and the submission of a run that was begun."""
        try:
            with self.submission.open("rb") as file:
                content = file.read(SUBMISSION_BYTES + 1)
        except OSError as error:
            raise CheckpointError(
                f"{self.root}: no run to resume: {error.strerror}",
                "give the folder that the interrupted run named",
            ) from None
        return read_plan(self.plan), Submission.from_bytes(content)

    def checkpoints(self, submission: Submission, survives_power_cut: bool = True) -> Checkpoints:
        """Where the run stands. `survives_power_cut`: see Checkpoints."""
        return Checkpoints(self.root / "checkpoints", submission.hash, survives_power_cut)

    def write_model(self, submission: Submission, state: State) -> str:
        """The trained parameters, with what is needed to use them: task, plan's hash, seed (for the frozen parts).

        Gives the file's SHA-256, hexadecimal.
        """
        run = submission.plan.run
        facts = {
            "task": run.task,
            "seed": str(run.seed),
            "run": submission.run_id,
            "submission": submission.hash,
            "rounds": str(state.round),
        }
        arrays = {name: np.asarray(array, order="C") for name, array in state.model.items()}  # save writes memory
        content = save(arrays, metadata=facts)
        self._write(self.model, content)
        return hashlib.sha256(content).hexdigest()

    def _write(self, path: Path, content: bytes) -> None:
        """The file is there with all of its content, also after a power cut, or as it was before."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise CheckpointError(
                f"{self.root}: cannot be written: {error.strerror}", "give a folder that can be written"
            ) from None
