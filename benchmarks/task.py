"""The peers' models and records as privet's tasks. Run by ours.py, which installs them for one run."""

from collections.abc import Mapping
from typing import ClassVar

import models
import torch
from privet.client.tasks.protocol import Facts, Options, Partition, Records, Source, Task
from torch import Tensor, nn
from torch.nn import functional


class Images(Task):
    """Ten classes of noisy images; `kind` names the model."""

    name: ClassVar[str] = "benchmark"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"kind": "mlp"}

    def facts(self, options: Options) -> Facts:
        return Facts("Noisy images", "made up from a seed", "none", (784,), (-3.0, 3.0), tuple("0123456789"))

    def model(self, options: Options) -> nn.Module:
        return models.MODELS[str(options["kind"])]()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def load(self, source: Source) -> Records:
        assert isinstance(source, Partition)
        return source.load()

    def shipped(self, options: Options) -> Records:
        """The peers' records, and so many more as the simulator holds out."""
        parts = [
            models.records(models.SEED, models.NODES * models.RECORDS),
            models.records(models.SEED + 2, models.HELD_OUT),
        ]
        inputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        return Records(inputs, targets)
