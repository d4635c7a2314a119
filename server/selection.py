"""Flower's Krum, MultiKrum and Bulyan, given how far each update is from the round's model, and not where it lies.

Flower takes squared distances as |a|^2 + |b|^2 - 2ab, in float32. Updates lie side by side and far from the origin, so
of a large model nothing is left of the difference: with a million parameters, a model of length 100 and updates of
length 0.05, distances are off by several times their size, and some are negative. What is selected depends on
differences only, so it is the same for updates from which the model was subtracted; and those are short.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from ..privacy.channel import words


class _Relative(flower.FedAvg):
    _model: Mapping[str, NDArray[Any]]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._model = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        moved = list(replies)
        for reply in moved:
            reply.content[words.ARRAYS] = self._shifted(reply.content.array_records[words.ARRAYS], -1)
        chosen, metrics = super().aggregate_train(server_round, moved)
        return self._shifted(chosen, 1) if chosen is not None else None, metrics

    def _shifted(self, record: ArrayRecord, sign: int) -> ArrayRecord:
        return ArrayRecord(
            {name: Array(np.asarray(a.numpy() + sign * self._model[name])) for name, a in record.items()}
        )


class Krum(_Relative, flower.Krum):
    """Blanchard et al. 2017."""


class MultiKrum(_Relative, flower.MultiKrum):
    """Blanchard et al. 2017; those selected are averaged by their weights, as by Flower."""


class Bulyan(_Relative, flower.Bulyan):
    """El Mhamdi et al. 2018."""
