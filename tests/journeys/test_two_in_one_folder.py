"""One run is one process's: a second that would go on with it is sent away, until the first is gone."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from privet.__main__ import run
from privet.client.tasks.registry import load_task
from privet.privacy.plan import Plan
from privet.server.run_folder import RunFolder
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from safetensors.numpy import load_file

CPU = torch.device("cpu")
# Goes on with a run, and waits after its second round.
HOLDER = """
import sys
from contextlib import closing
from pathlib import Path
import torch
from privet.server.run_folder import RunFolder
from privet.simulations.scenario import Scenario
def wait(view):
    if view.round == 2:
        print("waits", flush=True)
        sys.stdin.read()
torch.set_num_threads(1)
with closing(Scenario.resumed(RunFolder(Path(sys.argv[1])), torch.device("cpu"), processes=2)) as scenario:
    scenario.run(wait)
"""


def begun(plan: Plan, folder: Path) -> Scenario:
    return Scenario.begun(plan, RunFolder(folder), World.of(plan, load_task(plan.run.task)), CPU, processes=1)


def test_two_processes_do_not_go_on_with_one_run(
    make_plan: Callable[..., Plan], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    plan, folder = make_plan("run.rounds=4", "simulation.nodes=5"), tmp_path / "run"
    with closing(begun(plan, tmp_path / "whole")) as whole:
        whole.run(lambda view: None)
    begun(plan, folder).close()
    resume = ["simulate", "--resume", str(folder), "--device", "cpu", "--json"]
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "waits\n"
        capfd.readouterr()
        assert run(resume) == 2
        again = f"privet simulate --resume {folder}"
        said = f"error: {folder}: another process is at this run\ntry: wait, then: {again}\n"
        assert capfd.readouterr().err == said
        holder.kill()  # -9, and the process that it has forked is left to see that for itself
        holder.wait(20)
        assert run(resume) == 0
    one, other = (load_file(root / "model.safetensors") for root in (tmp_path / "whole", folder))
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}
