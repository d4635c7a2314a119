"""LocalGrid keeps the contract of Flower's Grid, for apps that know nothing of privet."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from privet.simulations.grid import Fault, LocalGrid

NODES = (11, 12, 13)


def counting_app() -> ClientApp:
    """As Flower's documentation teaches: it trains by adding one, and counts its calls in the context's state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls = context.state.config_records.setdefault("calls", ConfigRecord({"count": 0}))
        calls["count"] = int(calls["count"]) + 1  # type: ignore[arg-type]
        if context.node_id == 13 and message.metadata.group_id == "raise":
            raise RuntimeError("secret")
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        moved = ArrayRecord([array + context.node_id for array in arrays.to_numpy_ndarrays()])
        metrics = MetricRecord({"num-examples": 1, "calls": int(calls["count"])})  # type: ignore[arg-type]
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    return app


def grid_of(fault: Fault | None = None) -> LocalGrid:
    contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in NODES}
    return LocalGrid(counting_app(), contexts, fault)


def messages(grid: Grid, group: str = "1") -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(2, np.float32)])})
    return [grid.create_message(content, "train", node, group_id=group) for node in grid.get_node_ids()]


def test_unmodified_flower_apps_run_on_it() -> None:
    server = ServerApp()
    results: list[ArrayRecord] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(grid, ArrayRecord([np.zeros(2, np.float32)]), num_rounds=3)
        results.append(result.arrays)

    server(grid_of(), Context(1, 1, {}, RecordDict(), {}))
    np.testing.assert_allclose(results[0].to_numpy_ndarrays()[0], 36.0)


def test_replies_come_one_by_one_as_they_come_to_be() -> None:
    grid = grid_of()
    replies = grid.send_and_receive(messages(grid))
    assert isinstance(replies, Iterator)
    assert [reply.metadata.src_node_id for reply in replies] == list(NODES)


def test_replies_answer_their_messages() -> None:
    grid = grid_of()
    sent = messages(grid, group="7")
    for message, reply in zip(sent, grid.send_and_receive(sent), strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
        assert reply.metadata.group_id == "7"
        assert reply.metadata.message_type == "train"


def test_pushed_messages_can_be_pulled_once() -> None:
    grid = grid_of()
    ids = list(grid.push_messages(messages(grid)))
    assert len(set(ids)) == 3
    assert len(list(grid.pull_messages(ids))) == 3
    assert list(grid.pull_messages(ids)) == []


def test_state_of_a_node_lasts_from_message_to_message() -> None:
    grid = grid_of()
    list(grid.send_and_receive(messages(grid)))
    counts = [reply.content["metrics"]["calls"] for reply in grid.send_and_receive(messages(grid))]
    assert counts == [2, 2, 2]


def test_app_that_raises_is_an_error_reply_without_its_text() -> None:
    grid = grid_of()
    replies = list(grid.send_and_receive(messages(grid, group="raise")))
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert "secret" not in str(replies[2].error)


def test_unknown_node_gives_no_reply() -> None:
    grid = grid_of()
    stray = grid.create_message(RecordDict(), "train", 99, group_id="1")
    assert list(grid.send_and_receive([stray])) == []


@pytest.mark.parametrize("kind", ["drop", "lie"])
def test_faults_are_made_on_demand(kind: str) -> None:
    def fault(request: Message, reply: Message) -> Message | None:
        if request.metadata.dst_node_id != 12:
            return reply
        if kind == "drop":
            return None
        reply.content["arrays"] = ArrayRecord({"0": Array(np.full(2, np.nan, np.float32))})
        return reply

    grid = grid_of(fault)
    replies = list(grid.send_and_receive(messages(grid)))
    assert len(replies) == (2 if kind == "drop" else 3)
