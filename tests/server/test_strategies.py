"""Flower's strategies through the running average: the same models as Flower's own loop gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_nodes import FakeNode, grid_of, run
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import compute_distances
from privet.privacy.channel import words
from privet.privacy.channel.arrays import to_parameters, to_record
from privet.privacy.plan import Plan
from privet.privacy.plan_strategies import (
    KEEPING_STRATEGIES,
    OWN_STRATEGIES,
    REQUIRED_STRATEGY_KEYS,
    STRATEGY_KEYS,
    STREAMING_STRATEGIES,
)
from privet.privacy.submission import Submission
from privet.server.strategies import build_strategy

# Settings that a plan can say, and the arguments that Flower's own class is given in the comparison.
CASES: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "fedavg": ({}, {}),
    "fedprox": ({"proximal-mu": 0.1}, {"proximal_mu": 0.1}),
    "fedavgm": (
        {"server-momentum": 0.9, "server-learning-rate": 0.5},
        {"server_momentum": 0.9, "server_learning_rate": 0.5},
    ),
    "fedadagrad": ({"server-learning-rate": 0.2, "tau": 0.01}, {"eta": 0.2, "tau": 0.01}),
    "fedadam": ({"server-learning-rate": 0.2, "beta-1": 0.8}, {"eta": 0.2, "beta_1": 0.8}),
    "fedyogi": ({"server-learning-rate": 0.2, "beta-2": 0.95}, {"eta": 0.2, "beta_2": 0.95}),
    "krum": ({"malicious-nodes": 1}, {"num_malicious_nodes": 1}),
    "multikrum": ({"malicious-nodes": 1, "selected-nodes": 3}, {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    "bulyan": ({"malicious-nodes": 1}, {"num_malicious_nodes": 1}),
    "fedmedian": ({}, {}),
    "fedtrimmedavg": ({"trimmed-fraction": 0.2}, {"beta": 0.2}),
}
CLASSES = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedavgm": flower.FedAvgM,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
}


def seven_nodes() -> list[FakeNode]:
    def trained(place: int) -> Callable[..., RecordDict]:
        def train(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict:
            rng = np.random.default_rng([place, number])
            moved = {n: (0.8 * a + rng.normal(0.3, 0.2, a.shape)).astype(np.float32) for n, a in model.items()}
            metrics = MetricRecord({words.DECLARED_SIZE: 10 * place})
            return RecordDict({words.ARRAYS: to_record(moved), words.METRICS: metrics})

        return train

    return [FakeNode(f"node-{n}", 10 * n, train=trained(n), initial=0.5) for n in range(1, 8)]


def flowers_own(name: str, rounds: int) -> dict[str, np.ndarray]:
    strategy = CLASSES[name](
        fraction_evaluate=0.0, weighted_by_key=words.DECLARED_SIZE, min_available_nodes=1, **CASES[name][1]
    )
    initial = {"w": np.full((2, 2), 0.5, np.float32), "b": np.full((2,), 0.5, np.float32)}

    grid = grid_of(seven_nodes())
    arrays: ArrayRecord = to_record(initial)
    for number in range(1, rounds + 1):
        config = ConfigRecord({words.ROUND: number, words.ATTEMPT: 1})
        messages = sorted(
            strategy.configure_train(number, arrays, config, grid), key=lambda message: message.metadata.dst_node_id
        )
        aggregated, _ = strategy.aggregate_train(number, list(grid.send_and_receive(messages)))
        assert aggregated is not None
        arrays = to_record({n: a.numpy().astype(np.float32) for n, a in aggregated.items()})
    return to_parameters(arrays)


@pytest.mark.parametrize("name", list(CASES))
def test_strategy_gives_the_model_that_flowers_own_loop_gives(
    make_submission: Callable[..., Submission], tmp_path: Path, name: str
) -> None:
    settings = [f"aggregation.{key}={value}" for key, value in CASES[name][0].items()]
    state, _ = run(make_submission(f"aggregation.strategy={name}", *settings), seven_nodes(), tmp_path)
    for array_name, expected in flowers_own(name, rounds=4).items():
        np.testing.assert_allclose(state.model[array_name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["krum", "multikrum"])
def test_selection_sees_short_distances_between_long_models(make_plan: Callable[..., Plan], name: str) -> None:
    """A million values, a model of length 100, updates of length 0.05, of which two are near to one another."""
    rng = np.random.default_rng(7)
    model = rng.normal(0, 0.1, 2**20).astype(np.float32)
    moves = [rng.normal(0, 0.05 / 2**10, 2**20).astype(np.float32) for _ in range(6)]
    moves[4] = moves[3] + moves[2] / 2
    keys = ["malicious-nodes=3", *(["selected-nodes=1"] if name == "multikrum" else [])]  # judged by the one nearest
    strategy = build_strategy(make_plan(*(f"aggregation.{key}" for key in (f"strategy={name}", *keys))))
    list(strategy.configure_train(1, to_record({"w": model}), ConfigRecord({}), grid_of(seven_nodes())))
    records = [to_record({"w": model + move}) for move in moves]
    weight = MetricRecord({words.DECLARED_SIZE: 1})
    replies = [Message(RecordDict({words.ARRAYS: r, words.METRICS: weight}), 1, "train") for r in records]
    flowers = compute_distances(records)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert min(np.abs(arrays["w"].numpy() - model - moves[n]).max() for n in (3, 4)) < 1e-6
    true = [[float(((a - b).astype(np.float64) ** 2).sum()) for b in moves] for a in moves]
    assert np.abs(flowers - true).max() > 0.5 * np.max(true), "Flower can do it by itself now: selection.py may go"


def test_every_strategy_that_a_plan_may_name_is_compared() -> None:
    """But for privet's own, which is compared with its paper: tests/simulations/test_algorithms.py."""
    assert set(CASES) == {*STREAMING_STRATEGIES, *KEEPING_STRATEGIES}
    assert set(STRATEGY_KEYS) == {*CASES, *OWN_STRATEGIES}


def test_strategies_differ_from_plain_averaging(make_submission: Callable[..., Submission], tmp_path: Path) -> None:
    """A key that is not handed on would leave a strategy at plain averaging, and the comparison above blind to it."""
    plain = flowers_own("fedavg", rounds=2)["w"]
    for name in set(CASES) - {"fedavg", "fedprox"}:
        assert not np.allclose(flowers_own(name, rounds=2)["w"], plain, rtol=1e-3), name


@pytest.mark.parametrize("name", list(REQUIRED_STRATEGY_KEYS))
def test_strategy_gets_what_the_plan_says(make_plan: Callable[..., Plan], name: str) -> None:
    settings = [f"aggregation.{key}={value}" for key, value in CASES[name][0].items()]
    strategy = build_strategy(make_plan(f"aggregation.strategy={name}", *settings))
    for argument, value in CASES[name][1].items():
        assert getattr(strategy, argument) == value
