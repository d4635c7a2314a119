"""privet as a contender: `privet simulate` with all that belongs to it, asked and answering like a peer.

What is timed is what a user waits for: policies, charges, ledgers, kept answers, aggregation, witness, checkpoints,
and the score of every round's model on the records held out. Nothing of privet is replaced but the progress bar, by one
that also reads the clock.
"""

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import models
from contender import answer, asked
from privet.simulations import cli, summary
from privet.simulations.views import RoundView
from safetensors.torch import load_file

PLAN = """
[run]
name = "benchmark"
task = "benchmark"
seed = {seed}
rounds = {rounds}
[model]
kind = "{model}"
[aggregation]
fraction = {fraction}
[training]
local-steps = {steps}
learning-rate = {learning_rate}
[privacy]
{privacy}
sampling-rate = {sampling_rate}
[simulation]
nodes = {nodes}
held-out = {held_out}
account-epsilon = 1000.0
"""
PRIVATE = """unit = "record"
noise-multiplier = {noise}
delta = 1e-5
clip-norm = {clip_norm}"""


class Clock(summary.RoundProgress):
    """The bar that a user sees, which notes when each round's view came; round 0's is when the first begins."""

    moments: list[float] = []  # noqa: RUF012 -- one run a process

    def show(self, view: RoundView) -> None:
        self.moments.append(time.perf_counter())
        super().show(view)


def install_task(folder: Path) -> None:
    """Put the task on the path, with the entry point that an installation would write."""
    facts = folder / "benchmark_task-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark-task\nVersion: 1\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text("[privet.tasks]\nbenchmark = task:Images\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    assert find_spec("task") is not None, "benchmarks/ is not on the path"


def main() -> None:
    given = asked()
    private = PRIVATE.format(noise=models.NOISE_MULTIPLIER, clip_norm=models.CLIP_NORM)
    count = models.NODES * models.RECORDS + models.HELD_OUT
    text = PLAN.format(
        seed=models.SEED,
        rounds=given.rounds,
        model=given.model,
        fraction=given.cohort / models.NODES,
        steps=models.STEPS,
        learning_rate=given.learning_rate,
        privacy='unit = "none"' if given.privacy == "none" else private,
        sampling_rate=models.BATCH / models.RECORDS,
        nodes=models.NODES,
        held_out=models.HELD_OUT / count,
    )
    summary.RoundProgress = Clock
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        install_task(folder)
        (folder / "plan.toml").write_text(text, encoding="utf-8")
        cli.simulate(str(folder / "plan.toml"), out=folder / "run", processes=given.processes or None)
        model = models.initial(given.model)
        model.load_state_dict(load_file(folder / "run" / "model.safetensors"))
    answer(Clock.moments, models.test_loss(model))


if __name__ == "__main__":
    main()
