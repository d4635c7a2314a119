"""Handwritten digits: 1,797 images of 8 x 8 pixels, ten classes, shipped with scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...privacy.errors import TaskError
from .protocol import Facts, Options, Partition, Records, Source, Task
from .table import read_table, scaled

_PIXELS = 64
_PIXEL_RANGE = (0.0, 16.0)  # of the data set's description, not of its records
# Off zero, so that a black and a white pixel both speak; found on other splits than docs/utility.md reports.
_SCALE = (-0.3, 0.7)
_FEATURE_NORM = 3.0  # about that of a scaled image, so that one learning rate fits both
_MODELS = ("linear", "features", "cnn")


class RandomFeatures(nn.Module):
    """Random Fourier features (Rahimi and Recht 2007): fixed public projections, [B, inputs] -> [B, count].

    They are drawn from the plan's public seed and never trained, so a linear model on them stays cheap to protect.
    `scale`: standard deviation of the projection, the inverse of the kernel's width.
    """

    def __init__(self, inputs: int, count: int, scale: float) -> None:
        super().__init__()
        self._amplitude = _FEATURE_NORM * (2.0 / count) ** 0.5
        self.projection = nn.Linear(inputs, count)
        nn.init.normal_(self.projection.weight, std=scale)
        nn.init.uniform_(self.projection.bias, 0.0, 2 * torch.pi)
        self.projection.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, inputs] -> [B, count], each record of L2 norm about `_FEATURE_NORM`."""
        projected: Tensor = self.projection(inputs)
        features: Tensor = projected.cos() * self._amplitude
        return features


class Digits(Task):
    """Which digit an 8 x 8 image shows."""

    name: ClassVar[str] = "digits"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"kind": "linear", "features": 512, "scale": 0.55}

    def facts(self, options: Options) -> Facts:
        """See Task."""
        return Facts(
            title="Handwritten digits, 8 x 8 pixels (optical recognition test set, UCI)",
            source="scikit-learn load_digits; a CSV needs columns pixel_0 … pixel_63 (0 to 16) and label (0 to 9)",
            licence="CC BY 4.0",
            input_shape=(_PIXELS,),
            input_range=_SCALE,
            classes=tuple("0123456789"),
        )

    def model(self, options: Options) -> nn.Module:
        """`kind`: linear, features (a linear model on random features), or cnn (small, with GroupNorm)."""
        kind = options["kind"]
        if kind == "linear":
            return _zero(nn.Linear(_PIXELS, 10, bias=False))
        if kind == "features":
            count, scale = int(options["features"]), float(options["scale"])
            return nn.Sequential(RandomFeatures(_PIXELS, count, scale), _zero(nn.Linear(count, 10, bias=False)))
        if kind == "cnn":
            return nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)),
                nn.Conv2d(1, 16, kernel_size=3, padding=1),
                nn.GroupNorm(4, 16),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, kernel_size=3, padding=1),
                nn.GroupNorm(8, 32),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * 16, 10),
            )
        raise TaskError(f"model.kind: {kind!r} is not one of {', '.join(_MODELS)}", "set model.kind to one of them")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each record, [B]."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """`accuracy` [B]: 1 where the most likely class is the right one."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def columns(self, header: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        """See Tabular."""
        return {f"pixel_{i}": _PIXEL_RANGE for i in range(_PIXELS)}

    def load(self, source: Source) -> Records:
        """A partition, or a CSV with columns pixel_0 … pixel_63 and label."""
        if isinstance(source, Partition):
            return source.load()
        pixels, labels = read_table(source, [f"pixel_{i}" for i in range(_PIXELS)], classes=10)
        return Records(scaled(pixels, [_PIXEL_RANGE] * _PIXELS, _SCALE), labels)

    def shipped(self, options: Options) -> Records:
        """All 1,797 records."""
        from sklearn.datasets import load_digits  # slow to import, and not needed at a node

        pixels, labels = load_digits(return_X_y=True)
        return Records(
            scaled(torch.from_numpy(pixels).float(), [_PIXEL_RANGE] * _PIXELS, _SCALE),
            torch.from_numpy(labels).long(),
        )


def _zero(layer: nn.Linear) -> nn.Linear:
    """A linear model starts from no opinion; without a bias, whose noise would cost more than it gives."""
    nn.init.zeros_(layer.weight)
    return layer
