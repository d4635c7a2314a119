"""What a node does in a round with torch, and with Opacus: one epoch, or as many Poisson batches of the same mean.

The peers that train with torch (the loops, Flower's clients) share it. Module and optimiser are made once and used
for node after node, which is the fastest way: `PrivacyEngine.make_private` for each node costs a third more.
"""

from collections.abc import Callable

import torch
from models import BATCH, CLIP_NORM, NOISE_MULTIPLIER, RECORDS, STEPS
from torch import Tensor, nn
from torch.nn import functional

Train = Callable[[Tensor, Tensor], None]  # a node's inputs and targets; changes the model in place


def trainer(model: nn.Module, privacy: str, learning_rate: float) -> Train:
    """Trains `model` in place. `privacy`: none, or how Opacus finds per-record gradients or norms: hooks or ghost."""
    if privacy == "none":
        return _plain(model, learning_rate)
    return _hooks(model, learning_rate) if privacy == "hooks" else _ghost(model, learning_rate)


def _plain(model: nn.Module, learning_rate: float) -> Train:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)

    def train(inputs: Tensor, targets: Tensor) -> None:
        for batch in torch.randperm(RECORDS).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    return train


def _hooks(model: nn.Module, learning_rate: float) -> Train:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    private = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=learning_rate),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=BATCH,
    )

    def train(inputs: Tensor, targets: Tensor) -> None:
        for batch in _poisson_batches():
            optimizer.zero_grad()
            functional.cross_entropy(private(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    return train


def _ghost(model: nn.Module, learning_rate: float) -> Train:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    private = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=learning_rate),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=BATCH,
    )
    loss = DPLossFastGradientClipping(private, optimizer, nn.CrossEntropyLoss())

    def train(inputs: Tensor, targets: Tensor) -> None:
        for batch in _poisson_batches():
            optimizer.zero_grad()
            loss(private(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    return train


def _poisson_batches() -> list[Tensor]:
    """DP-SGD's claim is for Poisson batches. Opacus' own loader draws the same, more slowly."""
    drawn = torch.rand(STEPS, RECORDS) < BATCH / RECORDS
    return [mask.nonzero().flatten() for mask in drawn]
