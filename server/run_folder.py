"""The folder of a run: plan, submission, checkpoints, model. What is needed to go on is written first."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

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
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.plan.write_text(plan_text(plan), encoding="utf-8")
            self.submission.write_bytes(submission.canonical)
        except OSError as error:
            raise CheckpointError(
                f"{self.root}: cannot be written: {error.strerror}", "give a folder that can be written"
            ) from None

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

    def checkpoints(self, submission: Submission) -> Checkpoints:
        """Where the run stands."""
        return Checkpoints(self.root / "checkpoints", submission.hash)

    def write_model(self, submission: Submission, state: State) -> None:
        """The trained parameters, with what is needed to use them: task, plan's hash, seed (for the frozen parts)."""
        run = submission.plan.run
        facts = {
            "task": run.task,
            "seed": str(run.seed),
            "run": submission.run_id,
            "submission": submission.hash,
            "rounds": str(state.round),
        }
        arrays = {name: np.asarray(array, order="C") for name, array in state.model.items()}  # save writes memory
        self.model.write_bytes(save(arrays, metadata=facts))
