"""Breast cancer: 569 tumours, 30 measurements of cell nuclei each, benign or malignant, shipped with scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .protocol import Facts, Options, Partition, Records, Source, Task
from .table import read_table, scaled

# Declared public ranges, round numbers written down once: of the mean, the standard error and the worst of
# each measure. They hold nearly all records of the public data set; a value outside is clamped. No clinical source.
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "radius": ((5, 30), (0, 3), (5, 40)),
    "texture": ((5, 40), (0, 5), (10, 50)),
    "perimeter": ((40, 200), (0, 20), (50, 250)),
    "area": ((100, 2500), (0, 500), (100, 4000)),
    "smoothness": ((0.05, 0.2), (0, 0.03), (0.05, 0.25)),
    "compactness": ((0, 0.4), (0, 0.15), (0, 1)),
    "concavity": ((0, 0.5), (0, 0.4), (0, 1.2)),
    "concave_points": ((0, 0.2), (0, 0.05), (0, 0.3)),
    "symmetry": ((0.1, 0.3), (0, 0.08), (0.15, 0.6)),
    "fractal_dimension": ((0.05, 0.1), (0, 0.03), (0.05, 0.2)),
}
_STATISTICS = ("mean", "error", "worst")
_COLUMNS = [f"{statistic}_{measure}" for statistic in _STATISTICS for measure in _RANGES]
_COLUMN_RANGES = [_RANGES[measure][place] for place in range(len(_STATISTICS)) for measure in _RANGES]
_SCALE = (-0.5, 0.5)


class BreastCancer(Task):
    """Whether a tumour is benign (1) or malignant (0)."""

    name: ClassVar[str] = "breast-cancer"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {}

    def facts(self, options: Options) -> Facts:
        """See Task."""
        return Facts(
            title="Breast cancer, diagnostic (Wisconsin): a medical table",
            source=f"scikit-learn load_breast_cancer; a CSV needs the columns {', '.join(_COLUMNS)}, and label (0, 1)",
            licence="CC BY 4.0",
            input_shape=(len(_COLUMNS),),
            input_range=_SCALE,
            classes=("malignant", "benign"),
        )

    def model(self, options: Options) -> nn.Module:
        """Logistic regression with two outputs, from zero."""
        layer = nn.Linear(len(_COLUMNS), 2)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each record, [B]."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """`accuracy` [B]."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def columns(self, header: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        """See Tabular."""
        return dict(zip(_COLUMNS, _COLUMN_RANGES, strict=True))

    def load(self, source: Source) -> Records:
        """A partition, or a CSV with the columns that `privet tasks breast-cancer` lists."""
        if isinstance(source, Partition):
            return source.load()
        values, labels = read_table(source, _COLUMNS, classes=2)
        return Records(scaled(values, _COLUMN_RANGES, _SCALE), labels)

    def shipped(self, options: Options) -> Records:
        """All 569 records."""
        from sklearn.datasets import load_breast_cancer  # slow to import, and not needed at a node

        values, labels = load_breast_cancer(return_X_y=True)
        inputs = scaled(torch.from_numpy(values).float(), _COLUMN_RANGES, _SCALE)
        return Records(inputs, torch.from_numpy(labels).long())
