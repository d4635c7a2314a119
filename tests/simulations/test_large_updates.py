"""Models that diverge: what is large is added up to the same bits, whoever adds it, and in whatever order."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import CPU, AnyTask
from flwr.app import Message
from numpy.typing import NDArray
from privet.client.tasks.protocol import Options, Records
from privet.privacy.plan import Plan
from privet.server.run_folder import RunFolder
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from torch import nn

Make = Callable[..., Plan]
Model = dict[str, NDArray[np.float32]]


class Wide(AnyTask):
    """So many parameters that processes share a sum out among them."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(5, 4000), (5,))

    def shipped(self, options: Options) -> Records:
        return self.records(90)


def trained(plan: Plan, folder: Path, processes: int, *, one_by_one: bool = False) -> Model:
    """`one_by_one`: updates travel, since something might befall them."""
    torch.set_num_threads(1)

    def nothing_befalls(asked: Message, reply: Message) -> Message:
        return reply

    world = World.of(plan, Wide())
    scenario = Scenario.begun(plan, RunFolder(folder), world, CPU, engine="cohort", processes=processes)
    with closing(scenario):
        return dict(scenario.run(lambda view: None, nothing_befalls if one_by_one else None).model)


@pytest.mark.parametrize("rate", [3e4, 1e9])
def test_model_that_diverges_is_the_same_however_its_updates_are_added(
    make_plan: Make, tmp_path: Path, rate: float
) -> None:
    plan = make_plan("run.rounds=2", "simulation.nodes=23", f"training.learning-rate={rate}")
    whole = trained(plan, tmp_path / "1", 1)
    others = [trained(plan, tmp_path / "3", 3), trained(plan, tmp_path / "travelled", 2, one_by_one=True)]
    assert max(float(np.abs(array).max()) for array in whole.values()) > rate / 100
    for other in others:
        assert all(np.array_equal(other[name], array) for name, array in whole.items())
