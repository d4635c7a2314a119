"""What a round costs when training costs nothing: 100 nodes of a model that does nothing, over the in-process Grid.

Peer, in the same process and interleaved: Flower's own loop (FedAvg.start) over the same Grid and the same app.
Prints milliseconds a node (median) and the ratio. Issue: under 1 ms a node.

    .venv/bin/python benchmarks/grid.py
"""

import logging
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from privet.privacy.channel import words
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import resolve
from privet.server.checkpoints import Checkpoints
from privet.server.federation import Federation
from privet.simulations.grid import LocalGrid

NODES, ROUNDS, REPEATS = 100, 20, 7
PLAN = f"""
[run]
name = "nothing"
task = "nothing"
rounds = {ROUNDS}
[training]
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 1.0
"""


def app_that_does_nothing() -> ClientApp:
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        facts = ConfigRecord({words.NAME: f"node-{context.node_id}", words.DECLARED_SIZE: 1})
        return Message(RecordDict({words.CONFIG: facts}), reply_to=message)

    @app.query("initial")
    def initial(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"w": _array()})
        return Message(RecordDict({words.ARRAYS: arrays}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({words.DECLARED_SIZE: 1})
        content = RecordDict({words.ARRAYS: message.content[words.ARRAYS], words.METRICS: metrics})
        return Message(content, reply_to=message)

    return app


def _array() -> "np.ndarray":
    from flwr.app import Array

    return Array(np.zeros((10, 64), np.float32))


def grid() -> LocalGrid:
    contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in range(10, 10 + NODES)}
    return LocalGrid(app_that_does_nothing(), contexts)


def ours() -> float:
    """Milliseconds a node and round, checkpoints on disk included."""
    plan = parse_plan(PLAN, "nothing.toml")
    submission = resolve(plan, federation="bench", run_id="bench", operator="bench", now=datetime.now(UTC))
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(submission, grid(), Checkpoints(Path(folder), submission.hash), lambda state: None)
        started = time.perf_counter()
        federation.run()
        return (time.perf_counter() - started) / (NODES * ROUNDS) * 1e3


def flowers() -> float:
    """The same by Flower's own loop."""
    strategy = FedAvg(fraction_evaluate=0.0, weighted_by_key=words.DECLARED_SIZE)
    the_grid, initial = grid(), ArrayRecord({"w": _array()})
    started = time.perf_counter()
    strategy.start(the_grid, initial, num_rounds=ROUNDS)
    return (time.perf_counter() - started) / (NODES * ROUNDS) * 1e3


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    ours(), flowers()
    pairs = [(ours(), flowers()) for _ in range(REPEATS)]
    our, their = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    print(f"privet {our:.3f} ms a node; Flower's FedAvg.start over the same Grid {their:.3f} ms; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
