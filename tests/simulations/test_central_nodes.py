"""Where whole nodes are hidden, no node reaches the sum but by its own clipped update: neither by what a model keeps of
its records, nor by whom it trains beside. Told by the exact sum, with a node and without it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from privet.client.pristine import Pristine
from privet.client.tasks.registry import load_task
from privet.client.training import TrainableModel
from privet.privacy.errors import TaskError
from privet.privacy.parameters import Parameters
from privet.privacy.plan import Plan
from privet.server.run_folder import RunFolder
from privet.simulations.engine import EngineName
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from torch import Tensor, nn

CPU = torch.device("cpu")
NODES = 12
CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "run.rounds=1",
    f"simulation.nodes={NODES}",
    "simulation.partition=dirichlet",
    "simulation.alpha=0.5",
    "simulation.account-epsilon=20.0",
    "simulation.account-delta=0.01",
)


class InBuffer(nn.Module):
    """Keeps a running mean of records in a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 4 * inputs.detach().flatten(1).sum(1).mean().reshape(1)
        output: Tensor = self.inner(inputs - self.mean)
        return output


class InList(nn.Module):
    """Keeps records in a list, which no probe of tensors sees."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = [torch.zeros(1)]

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs):
            self.seen.append(4 * inputs.detach().flatten(1).sum(1).mean().reshape(1))
        output: Tensor = self.inner(inputs - torch.stack(self.seen).mean())
        return output


class Late(nn.Module):
    """Keeps records from its twelfth pass on: later than any trial on synthetic records looks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes, self.kept = 0, torch.zeros(1)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.inner(inputs - self.kept)
        self.passes += 1
        if self.passes > 12 and len(inputs):
            self.kept = inputs.detach().flatten(1).sum(1).mean().reshape(1)
        return output


class Wrapped:
    """The task `synthetic`, its model in another module."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self._task, self._wrap = load_task("synthetic"), wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def model(self, options: Any) -> nn.Module:
        return self._wrap(self._task.model(options))


def updates_of(plan: Plan, folder: Path, task: Any, engine: EngineName, without: str = "") -> dict[str, Parameters]:
    """What each node answers in the first round, where one of them is not asked."""
    world = World.of(plan, task)
    world.shares.pop(without, None)
    scenario = Scenario.begun(plan, RunFolder(folder), world, CPU, engine=engine, processes=1)
    found: dict[str, Parameters] = {}
    try:
        names = dict(enumerate(world.shares, start=2))
        scenario.run(lambda view: None, fault=lambda request, reply: _noted(found, names, reply))
    finally:
        scenario.close()
    return found


def _noted(found: dict[str, Parameters], names: dict[int, str], reply: Any) -> Any:
    if "arrays" in reply.content and reply.metadata.message_type == "train":
        arrays = reply.content["arrays"]
        name = names[reply.metadata.src_node_id]
        found[name] = {key: array.numpy().copy() for key, array in arrays.items()}
    return reply


@pytest.mark.parametrize("engine", ["sequential", "cohort"])
@pytest.mark.parametrize("absent", ["node-01", "node-07"])
def test_no_update_depends_on_who_trains_beside_it(make_plan, tmp_path: Path, engine: EngineName, absent: str) -> None:
    """At equality, to the last bit; with shares so uneven that batches would be padded to another's length."""
    plan = make_plan(*CENTRAL, "model.hidden=33", "model.features=17", "training.optimizer=adam")
    task = load_task("synthetic")
    with_it = updates_of(plan, tmp_path / "with", task, engine)
    without = updates_of(plan, tmp_path / "without", task, engine, absent)
    assert set(with_it) - set(without) == {absent}
    for name, update in without.items():
        assert all(np.array_equal(array, with_it[name][key]) for key, array in update.items()), name


def test_a_model_that_carries_a_nodes_records_to_the_next_is_refused(make_plan, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="mean changes when records pass"):
        updates_of(make_plan(*CENTRAL), tmp_path / "run", Wrapped(InBuffer), "auto")


@pytest.mark.parametrize(("keeping", "engine"), [(InList, "sequential"), (Late, "sequential"), (Late, "cohort")])
def test_what_a_model_keeps_of_a_node_reaches_no_other_nodes_update(
    make_plan, tmp_path: Path, keeping: Callable[[nn.Module], nn.Module], engine: EngineName
) -> None:
    """An attribute of a module is no tensor that a probe would look at."""
    plan, task = make_plan(*CENTRAL), Wrapped(keeping)
    with_it = updates_of(plan, tmp_path / "with", task, engine)
    without = updates_of(plan, tmp_path / "without", task, engine, "node-01")
    assert len(without) == NODES - 1
    for name, update in without.items():
        assert all(np.array_equal(array, with_it[name][key]) for key, array in update.items()), name


@pytest.mark.parametrize("unit", ["record", "node"])
def test_frozen_parameters_and_buffers_are_put_back_before_a_node_trains(make_plan, unit: str) -> None:
    claim = ("privacy.noise-multiplier=0.8", "privacy.delta=1e-3", "privacy.clip-norm=0.5", "run.spare-rounds=0")

    def wrap(inner: nn.Module) -> nn.Module:
        frozen = nn.Linear(3, 3).requires_grad_(False)
        return nn.Sequential(frozen, nn.InstanceNorm1d(3, affine=False), InBuffer(inner))

    trainable = TrainableModel(Wrapped(wrap), make_plan(f"privacy.unit={unit}", *claim), CPU)  # type: ignore[arg-type]
    began = {name: tensor.clone() for name, tensor in trainable.model.state_dict().items()}
    frozen, keeping = trainable.model[0], trainable.model[2]
    frozen.weight.add_(1.0)
    frozen.bias = nn.Parameter(torch.ones(3))
    keeping.mean = torch.ones(1)
    trainable.write(trainable.initial)
    now = trainable.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in began.items())


def test_attributes_are_put_back_and_the_parts_in_them_stay_the_same() -> None:
    model = InList(nn.Linear(2, 2))
    model.parts = [model.inner]  # type: ignore[assignment]  # as lists of modules that torch does not know of
    pristine = Pristine(model, with_attributes=lambda module: True)
    for _ in range(2):
        model.seen.append(torch.ones(1))
        model.later = torch.ones(1)  # type: ignore[assignment]
        pristine.restore()
        assert len(model.seen) == 1
        assert "later" not in vars(model)
        assert model.parts[0] is model.inner  # type: ignore[index]
