"""Flower apps that do what Flower allows and few apps do, and apps that fail. Each writes what it saw to `file`."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp import Grid, ServerApp

NOT_AN_APP = 7

# ---- at the nodes ----

node_app = ClientApp()


@node_app.query("describe")
def describe(msg: Message, context: Context) -> Message:
    """As privet's own nodes are asked, and with the records that privet's own answers have."""
    told = {"name": "a name of the app's own", "submission": b"\0\1", "numbers": [1, 2, 3], "seen": sorted(msg.content)}
    content = RecordDict({"config": ConfigRecord(told), "ledger": ConfigRecord({"head": "the app's own"})})
    return Message(content, reply_to=msg)


@node_app.train("custom")
def custom(msg: Message, context: Context) -> Message:
    """The records as they came, and what the metadata were; the arrays are larger than what was sent."""
    told = {
        "run_id": msg.metadata.run_id == context.run_id,
        "dst_node_id": msg.metadata.dst_node_id == context.node_id,
        "src_node_id": msg.metadata.src_node_id,
        "message_id": msg.metadata.message_id,
        "reply_to": msg.metadata.reply_to_message_id,
        "group_id": msg.metadata.group_id,
        "message_type": msg.metadata.message_type,
        "ttl": msg.metadata.ttl,
        "created_at": msg.metadata.created_at,
        "made_here": Message(RecordDict(), 1, "query").metadata.run_id == context.run_id,
    }
    large = ArrayRecord([np.arange(500_000.0)])
    return Message(RecordDict({**msg.content, "told": ConfigRecord(told), "large": large}), reply_to=msg)


@node_app.evaluate("late")
def late(msg: Message, context: Context) -> Message:
    """Answers when its file is there."""
    while not Path(msg.content["config"]["gate"]).exists():
        time.sleep(0.05)
    return Message(RecordDict(), reply_to=msg)


@node_app.query("failing")
def failing(msg: Message, context: Context) -> Message:
    """Counts in its state, then fails as it is asked to."""
    count = context.state["count"]["n"] if "count" in context.state else 0
    context.state["count"] = MetricRecord({"n": count + 1})
    match msg.content["config"]["how"]:
        case "raise":
            raise RuntimeError("patient 17")
        case "die":
            os._exit(3)
        case "error":
            return Message(Error(77, "the app's own error"), reply_to=msg)
        case "nothing":
            return None  # type: ignore[return-value]
    return Message(RecordDict({"count": context.state["count"]}), reply_to=msg)


class _Older(NumPyClient):
    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        return [np.zeros(3)]

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        return [array + 1 for array in parameters], 10, {}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return float(parameters[0].sum()), 10, {"sum": float(parameters[0].sum())}


older_node_app = ClientApp(client_fn=lambda context: _Older().to_client())

# ---- at the server ----

typed = ServerApp()
failures = ServerApp()
reserved = ServerApp()
raising = ServerApp()
exiting = ServerApp()
waiting = ServerApp()
asking = ServerApp()


def _keep(context: Context, told: Any) -> None:
    Path(context.run_config["file"]).write_text(json.dumps(told), encoding="utf-8")


def _to_all(grid: Grid, kind: str, content: RecordDict, **more: Any) -> list[Message]:
    return [Message(content, node_id, kind, **more) for node_id in grid.get_node_ids()]


@typed.main()
def main_of_typed(grid: Grid, context: Context) -> None:
    """Kinds of messages and of records; asked as newer apps do, and polled as older ones do."""
    described = grid.send_and_receive(_to_all(grid, "query.describe", RecordDict()))
    content = RecordDict(
        {
            "first": ArrayRecord([np.arange(3.0), np.array(5)]),
            "second": ArrayRecord({"w": Array(np.ones((2, 2), dtype=np.float32))}),
            "config": ConfigRecord({"bytes": b"\0\xff", "texts": ["a", "b"], "flags": [True], "none": [], "name": "x"}),
            "metrics": MetricRecord({"int": 3, "floats": [0.5, 1.5]}),
        }
    )
    messages = _to_all(grid, "train.custom", content, group_id="round-7", ttl=500.0)
    replies = grid.send_and_receive(messages, timeout=60)
    by_id = {message.metadata.message_id: message for message in messages}

    waiting_for = set(grid.push_messages(_to_all(grid, "query.describe", RecordDict())))
    pushed, polled = len(waiting_for), 0
    while waiting_for:
        for reply in grid.pull_messages(waiting_for):
            waiting_for.discard(reply.metadata.reply_to_message_id)
            polled += 1
        time.sleep(0.05)

    gate = {"config": ConfigRecord({"gate": context.run_config["gate"]})}
    untimely = grid.send_and_receive(_to_all(grid, "evaluate.late", RecordDict(gate)), timeout=0.2)
    expired = grid.send_and_receive(_to_all(grid, "evaluate.late", RecordDict(gate), ttl=0.3))
    never = set(grid.push_messages(_to_all(grid, "evaluate.late", RecordDict(gate), ttl=0.3)))
    gone: list[Message] = []
    while len(gone) < len(never):
        gone += grid.pull_messages(never)
        time.sleep(0.05)
    Path(context.run_config["gate"]).touch()
    told = [dict(reply.content["told"]) for reply in replies]
    _keep(
        context,
        {
            "described": [
                {k: v.decode() if isinstance(v, bytes) else v for k, v in reply.content["config"].items()}
                for reply in described
            ],
            "ledgers": [dict(reply.content["ledger"]) for reply in described],
            "told": told,
            "came_back": [all(reply.content[name] == content[name] for name in content) for reply in replies],
            "content_is_untouched": sorted(content),
            "large": [reply.content["large"].to_numpy_ndarrays()[0].sum() for reply in replies],
            "sent_as": [
                message.metadata.message_id == told["message_id"]
                and reply.metadata.src_node_id == message.metadata.dst_node_id
                and message.metadata.run_id == reply.metadata.run_id == context.run_id == grid.run.run_id
                and reply.metadata.group_id == "round-7"
                and told["created_at"] == message.metadata.created_at
                for reply, told in zip(replies, told, strict=True)
                for message in [by_id[reply.metadata.reply_to_message_id]]
            ],
            "pushed": [pushed, polled],
            "untimely": len(untimely),
            "expired": [[reply.error.code, reply.error.reason] for reply in expired],
            "gone": [[reply.error.code, reply.error.reason] for reply in gone],
            "node_ids": [len({reply.metadata.src_node_id for reply in replies}), len(list(grid.get_nodes()))],
        },
    )


def _said(reply: Message) -> Any:
    return [reply.error.code, reply.error.reason] if reply.has_error() else reply.content["count"]["n"]


@failures.main()
def main_of_failures(grid: Grid, context: Context) -> None:
    """What a failing node app is to a server app; then what its state has kept."""
    told: dict[str, Any] = {}
    for how in ("count", "raise", "die", "error", "nothing", "count"):
        asked = RecordDict({"config": ConfigRecord({"how": how})})
        replies = grid.send_and_receive(_to_all(grid, "query.failing", asked))
        told.setdefault(how, []).append(
            [
                [reply.error.code, reply.error.reason] if reply.has_error() else reply.content["count"]["n"]
                for reply in replies
            ]
        )
    replies = grid.send_and_receive(_to_all(grid, "query.unheard_of", RecordDict()))
    told["unheard"] = [reply.error.code for reply in replies]
    _keep(context, told)


@reserved.main()
def main_of_reserved(grid: Grid, context: Context) -> None:
    """Uses the one name that is taken."""
    grid.send_and_receive(_to_all(grid, "train", RecordDict({"privet": ConfigRecord({"a": 1})})))


@raising.main()
def main_of_raising(grid: Grid, context: Context) -> None:
    """Fails."""
    raise RuntimeError("a text that stays in the server's log")


@exiting.main()
def main_of_exiting(grid: Grid, context: Context) -> None:
    """Ends what it takes for its own process."""
    sys.exit(4)


@waiting.main()
def main_of_waiting(grid: Grid, context: Context) -> None:
    """Waits for a node that never comes, and lets no exception stop it."""
    with Path(context.run_config["file"]).open("a", encoding="utf-8") as file:
        file.write(f"{len(list(grid.get_node_ids()))}\n")
    while True:
        try:
            while len(list(grid.get_node_ids())) < 99:
                time.sleep(0.05)
        except Exception:
            continue


@asking.main()
def main_of_asking(grid: Grid, context: Context) -> None:
    """Asks the same nodes again and again, until each has refused."""
    node_ids, refused = list(grid.get_node_ids()), dict[str, list[Any]]()
    while len(refused) < len(node_ids):
        asked = RecordDict({"config": ConfigRecord({"how": "count"})})
        for reply in grid.send_and_receive([Message(asked, node_id, "query.failing") for node_id in node_ids]):
            if reply.has_error():
                refused.setdefault(str(reply.metadata.src_node_id), [reply.error.code, reply.error.reason])
            else:
                Path(context.run_config["answered"]).touch()
    _keep(context, sorted(refused.values()))


def _components(context: Context) -> ServerAppComponents:
    strategy = OlderFedAvg(
        initial_parameters=ndarrays_to_parameters([np.zeros(3)]),
        evaluate_metrics_aggregation_fn=lambda found: {"sum": sum(one["sum"] for _, one in found)},
        evaluate_fn=lambda number, parameters, config: _kept(context, number, parameters),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


def _kept(context: Context, number: int, parameters: list[np.ndarray]) -> None:
    _keep(context, {"round": number, "parameters": [array.tolist() for array in parameters]})


older = ServerApp(server_fn=_components)
