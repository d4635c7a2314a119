"""Who takes part in bench.py, and how each is run: a process of its own environment that answers in a line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
MOST_SECONDS = 1800.0  # a contender that is not done by then has failed
# One thread a process: more of them make small models several times slower. pfl looks for a GPU twice in every step
# unless it is told its device.
FAST = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PFL_PYTORCH_DEVICE": "cpu"}
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}

# none; how Opacus finds per-record norms; the faster of these two, as the loops in one process were; privet's own.
Privacy = Literal["none", "hooks", "ghost", "faster", "own"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders of a row do. `warm_up`: the rounds that are not counted."""

    name: str
    model: str
    rounds: int
    warm_up: int
    learning_rate: float
    cohort: int = 20
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Contender:
    """`environment`: a folder of the peers' environments; None for privet, which runs in this one."""

    name: str
    environment: str | None
    script: str
    privacy: Privacy = "none"
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a contender answered: each round's milliseconds without the warm-up, and the model's loss at the end."""

    times_ms: list[float]
    loss: float

    @property
    def median_ms(self) -> float:
        return median(self.times_ms)

    @property
    def mean_ms(self) -> float:
        return mean(self.times_ms)


def privet(is_private: bool) -> Contender:
    """As many processes as it takes by itself."""
    return Contender("privet", None, "ours.py", "own" if is_private else "none", processes=0)


def peers(is_private: bool) -> Iterator[Contender]:
    """Those that are compared with; the loops over Opacus come first, as others use the faster way of the two."""
    if is_private:
        yield Contender("Opacus node after node, hooks", "opacus", "loop.py", "hooks")
        yield Contender("Opacus node after node, ghost", "opacus", "loop.py", "ghost")
        if CORES > 1:
            yield Contender(f"Opacus, {CORES} processes", "opacus", "loop.py", "faster", CORES)
        yield Contender("Flower 1.41 with Opacus", "flower", "flower_app.py", "faster")
        return
    yield Contender("torch node after node", "opacus", "loop.py")
    if CORES > 1:
        yield Contender(f"torch, {CORES} processes", "opacus", "loop.py", processes=CORES)
    yield Contender("pfl 0.6", "pfl", "pfl_loop.py")
    if CORES > 1:
        yield Contender(f"pfl 0.6, {CORES} processes", "pfl", "pfl_processes.py", processes=CORES)
    yield Contender("Flower 1.41", "flower", "flower_app.py")


def run_of(contender: Contender, setting: Setting, environments: Path) -> Run | str:
    """One run of it; or why there is none."""
    python, script, more = Path(sys.executable), HERE / contender.script, {}
    if contender.environment is not None:
        if not (environments / f"{contender.environment}.stamp").exists():
            return "not installed"
        python = environments / contender.environment / "bin" / "python"
        script, more = HERE / "peers" / contender.script, FAST
    asked = {
        "model": setting.model,
        "cohort": setting.cohort,
        "rounds": setting.rounds,
        "learning-rate": setting.learning_rate,
        "privacy": contender.privacy,
        "processes": contender.processes,
    }
    told = last_line([str(python), str(script), *(f"--{key}={value}" for key, value in asked.items())], path() | more)
    if isinstance(told, str):
        return told
    return Run(times_ms=told["times_ms"][setting.warm_up :], loss=told["loss"])


def path() -> dict[str, str]:
    """The environment variable by which contenders find models and questions."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE / "peers"), str(HERE)])}


def last_line(command: list[str], more: dict[str, str]) -> dict[str, Any] | str:
    """What the process told in its last line; or, in few words, why it did not."""
    environment = os.environ | QUIET | more
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {MOST_SECONDS:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return f"failed: {(done.stderr.strip() or 'without a word').splitlines()[-1][:200]}"
    return json.loads(lines[-1])
