"""A made-up classification problem of any size: for trying a plan's shape before there is data."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .protocol import Facts, Options, Partition, Records, Source, Task
from .table import LABELS, numbered_columns, read_table, scaled

_RANGE = (-4.0, 4.0)
_SCALE = (-1.0, 1.0)
_SEED = 0  # the problem is one and the same; what varies with the plan's seed is who holds what
_SEPARATION = 2.0


class Synthetic(Task):
    """Gaussian clouds, one a class, in `features` dimensions."""

    name: ClassVar[str] = "synthetic"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"records": 5000, "features": 20, "classes": 2, "hidden": 0}

    def facts(self, options: Options) -> Facts:
        """See Task."""
        return Facts(
            title=f"Gaussian clouds: {options['records']} records, {options['features']} features",
            source="generated; a CSV needs columns x_0, x_1, … (-4 to 4) and label (0, 1, …)",
            licence="none needed",
            input_shape=(int(options["features"]),),
            input_range=_SCALE,
            classes=tuple(str(label) for label in range(int(options["classes"]))),
        )

    def model(self, options: Options) -> nn.Module:
        """Linear, or one hidden layer of `hidden` units."""
        features, classes, hidden = (int(options[key]) for key in ("features", "classes", "hidden"))
        if not hidden:
            return nn.Linear(features, classes)
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each record, [B]."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """`accuracy` [B]."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def columns(self, header: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        """See Tabular."""
        return {name: _RANGE for name in header if name.startswith("x_")}

    def load(self, source: Source) -> Records:
        """A partition, or a CSV; of a CSV the columns x_0 … are as many as it has."""
        if isinstance(source, Partition):
            return source.load()
        columns = numbered_columns(source, "x_")
        inputs, labels = read_table(source, columns, classes=LABELS)
        return Records(scaled(inputs, [_RANGE] * len(columns), _SCALE), labels)

    def shipped(self, options: Options) -> Records:
        """`records` records, equally many of each class but for the rest."""
        count, features, classes = (int(options[key]) for key in ("records", "features", "classes"))
        generator = torch.Generator().manual_seed(_SEED)
        centres = torch.randn((classes, features), generator=generator) * _SEPARATION / features**0.5
        labels = torch.arange(count) % classes
        inputs = centres[labels] + torch.randn((count, features), generator=generator)
        return Records(scaled(inputs, [_RANGE] * features, _SCALE), labels)
