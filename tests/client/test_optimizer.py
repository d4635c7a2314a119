"""The plan's optimisers move parameters to the bit as torch's own classes do, and without importing its compiler."""

import subprocess
import sys

import pytest
import torch
from privet.client.optimizer import optimizer_of
from privet.privacy.plan import TrainingSection
from torch import Tensor

PLAIN = {"local-steps": 1, "learning-rate": 0.3}


def moved(optimizer_for: object, steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    trained = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((4, 3), (5,), ())]
    optimizer = optimizer_for(trained)  # type: ignore[operator]
    for _ in range(steps):
        for parameter in trained:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in trained]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_torchs(momentum: float, decay: float) -> None:
    section = TrainingSection.model_validate({**PLAIN, "momentum": momentum, "weight-decay": decay})
    expected = moved(lambda p: torch.optim.SGD(p, lr=0.3, momentum=momentum, weight_decay=decay))
    assert all(map(torch.equal, moved(lambda p: optimizer_of(section, p)), expected))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay: float) -> None:
    section = TrainingSection.model_validate({**PLAIN, "optimizer": "adam", "weight-decay": decay})
    expected = moved(lambda p: torch.optim.Adam(p, lr=0.3, weight_decay=decay))
    assert all(map(torch.equal, moved(lambda p: optimizer_of(section, p)), expected))


def test_step_without_gradients_is_a_mistake() -> None:
    section = TrainingSection.model_validate(PLAIN)
    with pytest.raises(ValueError, match="without gradients"):
        optimizer_of(section, [torch.zeros(2)]).step()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_import_no_compiler(kind: str) -> None:
    """It takes seconds, at a node's every run too."""
    code = f"""
import sys, torch
from privet.client.optimizer import optimizer_of
from privet.privacy.plan import TrainingSection
trained = torch.zeros(3)
trained.grad = torch.ones(3)
optimizer_of(TrainingSection.model_validate({PLAIN | {"optimizer": kind}}), [trained]).step()
assert "torch._dynamo" not in sys.modules and bool((trained < 0).all())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
