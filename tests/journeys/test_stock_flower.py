"""privet's own apps on stock Flower, unmodified: its SuperLink, `flwr run`, its simulation runtime on Ray."""

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from privet.client.tasks.registry import load_task
from privet.privacy.plan import Plan
from privet.privacy.plan_file import parse_plan, plan_text
from privet.server.run_folder import RunFolder
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from safetensors.numpy import load_file
from signed_ledgers import DECLARED, read
from superlink import StockFlower, stock_flower

APP = Path(__file__).parents[2] / "examples" / "flower-app"
NODES = ["node-1", "node-2", "node-3", "node-4"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'"),
    pytest.mark.skipif(" " in sys.executable, reason="Ray starts no worker from a path with a space"),
]

PLAN = """
[run]
name = "stock"
task = "digits"
seed = 11
rounds = 2
[aggregation]
min-nodes = 4
[training]
local-steps = 3
learning-rate = 1.0
[privacy]
unit = "record"
epsilon = 3.0
delta = 1e-5
clip-norm = 0.5
sampling-rate = 0.3
[evaluation]
every = 2
metrics = ["accuracy"]
noise-multiplier = 20.0
[simulation]
nodes = 4
partition = "dirichlet"
alpha = 1.0
"""


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[StockFlower]:
    with stock_flower(tmp_path / "flower") as running:
        yield running


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As the nodes train: sums differ in the last bits by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulated(plan: Plan, root: Path) -> Scenario:
    world = World.of(plan, load_task("digits"))
    scenario = Scenario.begun(plan, RunFolder(root), world, torch.device("cpu"), engine="sequential")  # bit for bit
    scenario.run(lambda view: None)
    return scenario


def carried_out(flower: StockFlower, plan: Plan, root: Path) -> Path:
    """The run's folder, after `flwr run`."""
    (root / "plan.toml").write_text(plan_text(plan), encoding="utf-8")
    status, log = flower.run(APP, nodes=4, plan=str(root / "plan.toml"), out=str(root / "run"))
    assert status == "finished:completed", log
    return root / "run"


def arrays(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


@pytest.mark.usefixtures("_one_thread")
def test_flwr_run_gives_the_model_and_the_ledgers_of_privet_simulate(flower: StockFlower, tmp_path: Path) -> None:
    plan = parse_plan(PLAN, "plan.toml")
    out, here = carried_out(flower, plan, tmp_path), simulated(plan, tmp_path / "here")

    assert arrays(out) == arrays(here.folder.root)
    outcome = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    assert (outcome["rounds"], outcome["excluded"]) == (2, {})
    assert [(told["answered"], told["failures"]) for told in outcome["history"]] == [(4, {}), (4, {})]
    assert 0 < outcome["history"][1]["released"]["accuracy"] < 1
    claim = outcome["claim"]
    assert (claim["epsilon"], claim["delta"], claim["unit"]) == (3.0, 1e-5, "record")
    assert claim["relation"] == "add-or-remove-one"
    for name in NODES:
        entries = [e for e in read(out / "ledgers" / f"{name}.sqlite", owner=name) if e.kind != "witnessed"]
        assert [entry.kind for entry in entries] == [*DECLARED, "charge", *["begin", "answer"] * 3]
        charged = Decimal(entries[3].content["epsilon"])
        assert Decimal("2.9") < charged <= Decimal("3.0")
        assert charged == here.standing(name).epsilon
        done = [(e.content["stage"], e.content["round"], e.content["attempt"]) for e in entries[4::2]]
        assert done == [("train", "1", "1"), ("train", "2", "1"), ("evaluate", "2", "1")]
