"""Runs that are killed, in real processes, at any moment; and one that is interrupted from the keyboard."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from privet.client.tasks.registry import load_task
from privet.privacy.plan import Plan
from privet.server.run_folder import RunFolder
from privet.simulations.engine import EngineName
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from safetensors.numpy import load_file
from signed_ledgers import read

CPU = torch.device("cpu")
# A killed child got at most this long. A whole run takes some tenths of a second.
LONGEST_LIFE = 0.1
MOST_LIVES = 60

LONG = ("run.rounds=12", "run.spare-rounds=100", "evaluation.every=3", "simulation.nodes=4")


def begin(plan: Plan, folder: Path, engine: EngineName = "sequential") -> Scenario:
    return Scenario.begun(plan, RunFolder(folder), World.of(plan, load_task(plan.run.task)), CPU, engine=engine)


def go_on(folder: Path, engine: EngineName) -> None:
    """What a killed child does: go on with the run in this folder, in a process of its own."""
    torch.set_num_threads(1)
    Scenario.resumed(RunFolder(folder), CPU, engine=engine).run(lambda view: None)
    os._exit(0)


def live_until_done(folder: Path, rng: random.Random, engine: EngineName = "sequential") -> int:
    """Start the run again and again, killing each process at a random moment, until one ends; how many were killed."""
    fork = multiprocessing.get_context("fork")
    for killed in range(MOST_LIVES):
        process = fork.Process(target=go_on, args=(folder, engine))
        process.start()
        process.join(rng.uniform(0.0, LONGEST_LIFE) if killed < 25 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
        elif process.exitcode == 0:
            return killed
        else:
            raise AssertionError(f"exit code {process.exitcode}")
    raise AssertionError("never done")


def model_values(folder: Path) -> NDArray[np.float64]:
    return np.concatenate([array.ravel() for array in load_file(folder / "model.safetensors").values()]).astype(float)


def model_bytes(folder: Path) -> bytes:
    content = (folder / "model.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.slow
def test_killed_run_ends_with_the_same_model_byte_for_byte(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan(*LONG, "aggregation.strategy=fedavgm", "aggregation.server-momentum=0.5")
    begin(plan, tmp_path / "whole").run(lambda view: None)
    begin(plan, tmp_path / "killed")
    killed = live_until_done(tmp_path / "killed", random.Random(1))
    assert killed >= 3, "the test must kill something"
    assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_killed_run_of_the_cohort_engine_ends_with_the_same_model(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """Up to rounding: who lost an attempt is trained again in other company."""
    plan = make_plan(*LONG)
    begin(plan, tmp_path / "whole", "cohort").run(lambda view: None)
    begin(plan, tmp_path / "killed", "cohort")
    assert live_until_done(tmp_path / "killed", random.Random(3), "cohort") >= 3
    np.testing.assert_allclose(model_values(tmp_path / "killed"), model_values(tmp_path / "whole"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sequential", "cohort"])
def test_killed_private_run_spends_what_it_began_and_never_more_than_was_charged(
    make_plan: Callable[..., Plan], tmp_path: Path, engine: EngineName
) -> None:
    noise = ("privacy.noise-multiplier=40.0", "evaluation.noise-multiplier=100.0")
    plan = make_plan(*LONG, "run.rounds=60", *noise, private=True)
    scenario = begin(plan, tmp_path / "run", engine)
    killed = live_until_done(tmp_path / "run", random.Random(2), engine)
    assert killed >= 10, "the test must kill torch at its work, not once but often"
    for name in scenario.world.shares:
        path = tmp_path / "run" / "ledgers" / f"{name}.sqlite"
        entries = read(path, owner=name)
        kinds = [entry.kind for entry in entries]
        assert kinds.count("charge") == 1
        begun = [(e.content["stage"], e.content["round"], e.content["attempt"]) for e in entries if e.kind == "begin"]
        answered = [
            (e.content["stage"], e.content["round"], e.content["attempt"]) for e in entries if e.kind == "answer"
        ]
        assert len(set(begun)) == len(begun), "no attempt begins twice"
        assert set(answered) <= set(begun), "nothing is answered that did not begin"
        trained = {round_number for stage, round_number, _ in answered if stage == "train"}
        assert trained == {str(number) for number in range(1, 61)}, "every round was answered"
        assert sum(stage == "train" for stage, _, _ in begun) <= 160
        assert scenario.standing(name).attempts == sum(stage == "train" for stage, _, _ in begun)


ENDLESS = """
[run]
name = "endless"
task = "synthetic"
rounds = 5000
[model]
records = 60
features = 4
[training]
learning-rate = 0.1
[privacy]
unit = "none"
sampling-rate = 0.5
[simulation]
nodes = 2
"""


def interrupted_at(folder: Path, round_number: int, *arguments: str) -> str:
    """Start `privet simulate`, press Ctrl-C once that round is done, and give what it told on standard error."""
    command = [sys.executable, "-m", "privet", "simulate", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not any(seen >= round_number for seen in rounds_seen(folder)):
            with contextlib.suppress(subprocess.TimeoutExpired):  # the clock is the process: it must not end before
                pytest.fail(f"ended early with {process.wait(timeout=0.02)}: {process.stderr.read()}")
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 1, told
    return told


def rounds_seen(folder: Path) -> list[int]:
    path = folder / "out" / "views.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["round"] for line in lines if line.endswith("\n")]


def test_interrupted_run_keeps_its_state_and_names_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a real process; `--resume` goes on where it stopped."""
    (tmp_path / "plan.toml").write_text(ENDLESS)
    told = interrupted_at(tmp_path, 3, "plan.toml", "--out", "out")
    lines = [line for line in told.splitlines() if line.startswith(("error:", "try:"))]
    stopped = re.fullmatch(r"error: interrupted after round (\d+) of 5000; its state is kept", lines[0])
    assert stopped, told
    assert lines[1:] == ["try: privet simulate --resume out"]
    first = rounds_seen(tmp_path)
    interrupted_at(tmp_path, max(first) + 3, "--resume", "out")
    after = rounds_seen(tmp_path)[len(first) :]
    assert after[0] in (max(first) - 1, max(first)), "it goes on where it stopped"
    assert after == list(range(after[0], after[0] + len(after))), "and leaves out no round"
