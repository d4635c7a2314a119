"""Scale: a cohort of about 1,000 of 10,000 nodes, an MLP of 25 thousand parameters, whole nodes hidden, one process.

Prints the peak memory of the process and the time of a round, of its one thread: ledger, aggregation, noise, checkpoint
and the score of each round's model included. The data are made up: 20 records a node, 220,000 with those held out,
88 MB. The peer is pfl with a Gaussian at its server, in one process, if its environment is there (`make bench` sets it
up); it draws cohorts of a fixed size, keeps no ledger and no checkpoints, and scores nothing. Issue: under 1.5 GB.

    .venv/bin/python benchmarks/scale.py [ROUNDS]
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {"nodes": 10_000, "cohort": 1_000, "records": 20, "features": 100, "hidden": 225, "classes": 10, "steps": 2}
PLAN = """
[run]
name = "scale"
task = "synthetic"
rounds = {rounds}
[model]
records = 220000
features = {features}
hidden = {hidden}
classes = {classes}
[aggregation]
fraction = 0.1
[training]
local-steps = {steps}
learning-rate = 0.1
[privacy]
unit = "node"
noise-multiplier = 1.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.5
target-quantile = 0.5
count-noise-stddev = 50.0
[simulation]
nodes = {nodes}
held-out = 0.09
account-epsilon = 100.0
"""
PEER = Path(__file__).parent.parent / ".venv-bench" / "pfl" / "bin" / "python"


def ours(rounds: int) -> None:
    """The child: one simulation, as `privet simulate --processes 1` carries it out; prints what it took."""
    import torch
    from privet.client.tasks.registry import load_task
    from privet.privacy.plan_file import parse_plan
    from privet.server.run_folder import RunFolder
    from privet.simulations.cohort.memory import keep_memory
    from privet.simulations.scenario import Scenario
    from privet.simulations.world import World

    torch.set_num_threads(1)
    plan = parse_plan(PLAN.format(rounds=rounds, **SHAPE), "scale.toml", [])
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        world = World.of(plan, load_task("synthetic"))
        scenario = Scenario.begun(plan, RunFolder(Path(place) / "run"), world, torch.device("cpu"), processes=1)
        keep_memory()
        scenario.run(lambda view: moments.append(time.process_time()))
        scenario.close()
    times = [1e3 * (after - before) for before, after in itertools.pairwise(moments[1:])]  # the first is warm-up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": statistics.median(times), "peak_mb": peak}))


def measured(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: failed: {done.stderr.strip().splitlines()[-1:]}")
        return
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {told['ms']:.0f} ms a round, peak {told['peak_mb']:.0f} MB")


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 6
    measured("privet", [sys.executable, __file__, "--child", str(rounds)])
    if PEER.exists():
        script = Path(__file__).parent / "peers" / "pfl_scale.py"
        measured("pfl", [str(PEER), str(script), json.dumps(SHAPE | {"rounds": rounds})])
    else:
        print("pfl: not installed; make bench sets its environment up")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        ours(int(sys.argv[2]))
    else:
        main()
