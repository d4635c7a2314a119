"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): nodes whose records differ drift less.

A node i keeps a control variate c_i, the server keeps c; both begin at 0. In a round the nodes S of N that are asked
take K steps y <- y - lr (g(y) - c_i + c) from the model x, then

    c_i <- c_i - c + (x - y_i) / (K lr)
    x   <- x + server_lr * mean over S of (y_i - x)
    c   <- c + |S| / N * mean over S of the changes of c_i

All nodes of S weigh the same, as in the paper. The change of c_i is -c + (x - y_i) / (K lr): it follows from what the
server has when it holds y_i, and so it is not sent, and only the average of the updates is needed. (Huang et al. 2024,
"Stochastic controlled averaging", make the same use of it.)

c_i is kept at the node, and counts once the server has taken the update that it came with. Simulations keep it
(simulations/variates.py); a deployment's node does not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from ..privacy.channel import words


class Scaffold(FedAvg):
    """The server's half. `share`: |S| / N of the round that is aggregated next, to be set before."""

    def __init__(
        self, *, local_steps: int, learning_rate: float, server_learning_rate: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self.share = 1.0
        self.control: dict[str, NDArray[np.float32]] = {}
        self._model: Mapping[str, NDArray[np.float32]] = {}
        self._reach = local_steps * learning_rate

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See FedAvg; each request carries c beside the model."""
        self._model = {name: array.numpy() for name, array in arrays.items()}
        self.control = self.control or {name: np.zeros_like(values) for name, values in self._model.items()}
        record = ArrayRecord({name: Array(values) for name, values in self.control.items()})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[words.CONTROL] = record
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See FedAvg; the replies weigh the same, or are one: their average."""
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return None, metrics
        moved = {name: average[name].numpy().astype(np.float64) - values for name, values in self._model.items()}
        for name, change in moved.items():
            control = self.control[name].astype(np.float64)
            self.control[name] = (control - self.share * (control + change / self._reach)).astype(np.float32)
        reached = {name: self._model[name] + self.server_learning_rate * change for name, change in moved.items()}
        return ArrayRecord({name: Array(values.astype(np.float32)) for name, values in reached.items()}), metrics
