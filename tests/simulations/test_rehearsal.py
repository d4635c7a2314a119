"""What a simulation loads, and that it refuses what a deployment would although nothing in it needs Opacus."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import CPU, AnyTask
from privet.client.tasks.protocol import Options, Records
from privet.privacy.errors import TaskError
from privet.privacy.plan import Plan
from privet.server.run_folder import RunFolder
from privet.simulations.cohort.check import checked_model
from privet.simulations.rehearsal import is_sure_of_opacus
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from torch import Tensor, nn

Make = Callable[..., Plan]


class Pictures(AnyTask):
    """Any model over 60 made-up pictures of 1 x 6 x 6."""

    def __init__(self, model_of: Callable[[], nn.Module]) -> None:
        super().__init__(model_of, (1, 6, 6))

    def shipped(self, options: Options) -> Records:
        return self.records(60)


class Spare(nn.Module):
    """[B, 1, 6, 6] -> [B, 4], with a layer that nothing passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(36, 4), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.used(inputs.flatten(1))
        return output


def picture_model(**options: object) -> Callable[[], nn.Module]:
    convolution = {"padding": 1, **options}
    return lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, **convolution),  # type: ignore[arg-type]
        nn.GroupNorm(1, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
    )


def test_simulation_by_the_cohort_engine_loads_neither_opacus_nor_ray(tmp_path: Path) -> None:
    program = (
        "import sys; from privet.__main__ import run\n"
        f"code = run(['simulate', 'breast-cancer', '--engine', 'cohort', '--out', {str(tmp_path / 'run')!r},"
        " '--set', 'run.rounds=2', '--set', 'evaluation.every=2'])\n"
        "print(code, {'opacus', 'ray'} & set(sys.modules), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert told.stderr.splitlines()[-1] == "0 set()", told.stderr


def test_opacus_is_not_asked_about_layers_that_it_is_known_to_get_right(make_plan: Make) -> None:
    model = checked_model(Pictures(picture_model()), make_plan(private=True), CPU)
    assert is_sure_of_opacus(model)


@pytest.mark.parametrize(
    "model_of",
    [picture_model(padding_mode="reflect"), Spare],
    ids=["padded with what Opacus takes for zeros", "an unused layer"],
)
def test_model_that_a_deployment_refuses_is_refused_here(
    make_plan: Make, tmp_path: Path, model_of: Callable[[], nn.Module]
) -> None:
    """The cohort engine trains both of them right."""
    plan, task = make_plan("simulation.nodes=2", private=True), Pictures(model_of)
    assert not is_sure_of_opacus(checked_model(task, plan, CPU))
    with pytest.raises(TaskError, match="cannot be taken record by record"):
        Scenario.begun(plan, RunFolder(tmp_path / "run"), World.of(plan, task), CPU, engine="cohort")
    assert not (tmp_path / "run").exists()
