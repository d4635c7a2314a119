"""The models and the records that every contender trains: torch alone, so that each environment can import it.

The records are made up: each class is a smooth image of 28 x 28, each record its class's image under much noise.
They follow from a seed, so that every contender reads the same ones, and starts from the same weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

NODES, RECORDS, BATCH = 100, 100, 20  # a node's records make one epoch of five batches
STEPS = RECORDS // BATCH
HELD_OUT = 100  # what privet's simulator scores in every round; the peers score nothing
TESTED = 2_000  # what all are compared on when they are done
CLIP_NORM, NOISE_MULTIPLIER = 1.0, 0.7
SEED = 7
_CLASSES, _SIDE, _NOISE = 10, 28, 3.0


def mlp() -> nn.Module:
    """51 thousand parameters."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    """37 thousand parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def large_cnn() -> nn.Module:
    """1.7 million parameters: the CNN of McMahan et al. 2017."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "small-cnn": small_cnn, "large-cnn": large_cnn}


def initial(model: str) -> nn.Module:
    """The model as everybody begins with it."""
    torch.manual_seed(SEED)
    return MODELS[model]()


def records(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` records of the same ten classes: inputs [count, 784] float32, targets [count] int64."""
    coarse = torch.randn(_CLASSES, 1, 7, 7, generator=torch.Generator().manual_seed(SEED))
    images = functional.interpolate(coarse, size=(_SIDE, _SIDE), mode="bilinear").flatten(1)
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(_CLASSES, (count,), generator=random)
    inputs = images[targets] / _NOISE + torch.randn(count, images.shape[1], generator=random)
    return inputs, targets


def node_records() -> list[tuple[Tensor, Tensor]]:
    """What each node holds."""
    inputs, targets = records(SEED, NODES * RECORDS)
    return list(zip(inputs.split(RECORDS), targets.split(RECORDS), strict=True))


def test_loss(model: nn.Module) -> float:
    """The mean loss on records that nobody trained with."""
    inputs, targets = records(SEED + 1, TESTED)
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs), targets))
