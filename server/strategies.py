"""Flower's strategies by the plan's names, and what of them must survive a crash.

FedAvg (McMahan et al. 2017), FedProx (Li et al. 2020), FedAvgM (Hsu et al. 2019), FedAdagrad, FedAdam and FedYogi
(Reddi et al. 2021) need the weighted average only: it is computed as replies arrive and handed to the strategy as one
reply. Krum and MultiKrum (Blanchard et al. 2017), Bulyan (El Mhamdi et al. 2018), median and trimmed mean (Yin et al.
2018) compare updates and get them all; the first three are helped with their arithmetic (selection.py). SCAFFOLD
(Karimireddy et al. 2020) is not Flower's (scaffold.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
)
from numpy.typing import NDArray

from ..privacy.channel import words
from ..privacy.errors import FederationError, PlanError
from ..privacy.plan import Plan
from .scaffold import Scaffold
from .selection import Bulyan, Krum, MultiKrum

_CLASSES: dict[str, Callable[..., FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "krum": Krum,
    "multikrum": MultiKrum,
    "bulyan": Bulyan,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "scaffold": Scaffold,
}
_PLAIN = (FedAvg, FedProx)
# The plan's key -> Flower's argument, where they differ.
_ARGUMENTS = {
    "server_learning_rate": "eta",
    "malicious_nodes": "num_malicious_nodes",
    "selected_nodes": "num_nodes_to_select",
    "trimmed_fraction": "beta",
}
_KEYS = ("server_learning_rate", "server_momentum", "beta_1", "beta_2", "tau", "proximal_mu")
_KEEPING_KEYS = ("malicious_nodes", "selected_nodes", "trimmed_fraction")
# What a strategy carries from round to round: dictionaries by name (FedOpt, Scaffold), and FedAvgM's list by position.
_DICTIONARIES = ("m_t", "v_t", "control")
_MOMENTUM = "momentum_vector"
_NOBODY = 0  # no node has this number; a strategy waits for ever where it is shown none


def build_strategy(plan: Plan) -> FedAvg:
    """The plan's strategy, which never samples or waits: the cohort was chosen before it is asked."""
    aggregation = plan.aggregation
    given = {
        key: getattr(aggregation, key) for key in (*_KEYS, *_KEEPING_KEYS) if getattr(aggregation, key) is not None
    }
    arguments = {_argument(aggregation.strategy, key): value for key, value in given.items()}
    if aggregation.strategy == "scaffold":
        arguments |= {"local_steps": plan.training.local_steps, "learning_rate": plan.training.learning_rate}
    return _CLASSES[aggregation.strategy](
        min_train_nodes=1,
        min_available_nodes=1,
        fraction_evaluate=0.0,
        weighted_by_key=words.DECLARED_SIZE,
        arrayrecord_key=words.ARRAYS,
        configrecord_key=words.CONFIG,
        **arguments,
    )


def show_model(strategy: FedAvg, round_number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> None:
    """Show the strategy a round's model where nobody is asked: what it gives next may be relative to it."""
    strategy.configure_train(round_number, arrays, config, ChosenNodes(grid, [_NOBODY]))


def check_deployable(plan: Plan) -> None:
    """Raise PlanError for what only `privet simulate` can do: a strategy whose nodes keep something, and faults."""
    if plan.simulation is not None and plan.simulation.faults is not None and plan.simulation.faults.is_any:
        raise PlanError(
            ["simulation.faults: only privet simulate makes faults"],
            "take [simulation.faults] out, or use privet simulate",
        )
    if plan.aggregation.strategy == "scaffold":
        raise PlanError(
            ["aggregation.strategy: 'scaffold' has control variates at the nodes, which only privet simulate keeps"],
            "name another strategy, or use privet simulate",
        )


def weight_of(plan: Plan, declared_size: int) -> int:
    """What a node's update counts in an average: by its records; in SCAFFOLD all nodes count the same."""
    return 1 if plan.aggregation.strategy == "scaffold" else declared_size


def aggregate(strategy: FedAvg, round_number: int, replies: Sequence[Message], share: float = 1.0) -> ArrayRecord:
    """The next model, float32; raise FederationError where the strategy gives none.

    `share`: of the federation's nodes, those whose updates are in the replies.
    """
    if isinstance(strategy, Scaffold):
        strategy.share = share
    if type(strategy) in _PLAIN and len(replies) == 1:
        average = replies[0].content[words.ARRAYS]  # of one is that one: Flower would copy it four times
        assert isinstance(average, ArrayRecord), "the federation put it there"
        return average
    arrays, _ = strategy.aggregate_train(round_number, replies)
    if arrays is None:
        raise FederationError(
            f"round {round_number}: {type(strategy).__name__} had too few updates to aggregate",
            "raise aggregation.min-nodes, or lower aggregation.malicious-nodes",
        )
    return ArrayRecord({name: _as_float32(array) for name, array in arrays.items()})


def remembered(strategy: FedAvg) -> dict[str, NDArray[Any]]:
    """What the strategy must have again after a crash, as named arrays."""
    kept: dict[str, NDArray[Any]] = {}
    for attribute in _DICTIONARIES:
        kept |= {f"{attribute}/{name}": array for name, array in (getattr(strategy, attribute, None) or {}).items()}
    momentum = getattr(strategy, _MOMENTUM, None) or []
    return kept | {f"{_MOMENTUM}/{place:06d}": array for place, array in enumerate(momentum)}


def remind(strategy: FedAvg, kept: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give back what `remembered` gave."""
    for attribute in _DICTIONARIES:
        prefix = f"{attribute}/"
        found = {name.removeprefix(prefix): array for name, array in kept.items() if name.startswith(prefix)}
        if found:
            setattr(strategy, attribute, {name: found[name].reshape(shape) for name, shape in shapes.items()})
    momentum = [kept[name] for name in sorted(kept) if name.startswith(f"{_MOMENTUM}/")]
    if momentum:
        ordered = zip(momentum, shapes.values(), strict=True)
        setattr(strategy, _MOMENTUM, [array.reshape(shape) for array, shape in ordered])


class ChosenNodes(Grid):
    """A Grid that shows a strategy the chosen cohort and nothing else."""

    def __init__(self, grid: Grid, node_ids: Iterable[int]) -> None:
        self._grid = grid
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        """The cohort."""
        return self._node_ids

    @property
    def run(self) -> Any:
        """The grid's run."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Not for a strategy to say."""
        raise ValueError("a strategy does not choose the run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the grid does."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid does."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def requests(
    strategy: FedAvg,
    round_number: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    grid: Grid,
    cohort: Iterable[int],
) -> list[Message]:
    """The strategy's own training messages to the cohort, in the cohort's order."""
    order = {node_id: place for place, node_id in enumerate(cohort)}
    messages = strategy.configure_train(round_number, arrays, config, ChosenNodes(grid, order))
    return sorted(messages, key=lambda message: order[message.metadata.dst_node_id])


def _argument(strategy: str, key: str) -> str:
    return key if strategy in ("fedavgm", "scaffold") else _ARGUMENTS.get(key, key)


def _as_float32(array: Array) -> Array:
    """Median and some others give doubles."""
    return array if array.dtype == "float32" else Array(array.numpy().astype(np.float32))
