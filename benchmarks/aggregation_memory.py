"""Peak memory of aggregating one round of 100 updates of 40 MB: privet's running average against Flower's FedAvg.

Each contender runs in a process of its own; replies are made one by one, as from a wire. Prints the growth of the
resident set in updates, and the ratio. Issue: under four updates for privet.

    .venv/bin/python benchmarks/aggregation_memory.py [--nodes 100] [--megabytes 40]
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from privet.privacy.channel import words
from privet.privacy.channel.arrays import as_record
from privet.server.aggregation import RunningAverage
from privet.server.replies import Failure, checked_update

MIB = 2**20


def replies(nodes: int, megabytes: int) -> Iterator[Message]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    made = Array(np.ones(megabytes * MIB // 4, np.float32))
    content = memoryview(made.data)
    for node in range(nodes):
        arrived = Array(made.dtype, made.shape, made.stype, b"".join((content[:128], content[128:])))
        record = RecordDict({words.ARRAYS: ArrayRecord({"w": arrived}), words.METRICS: MetricRecord({"n": node + 1})})
        del arrived
        message = Message(record, 1, "train")
        del record
        yield message
        del message


def ours(nodes: int, megabytes: int) -> None:
    model = {"w": np.broadcast_to(np.float32(0), (megabytes * MIB // 4,))}
    average = RunningAverage(model, nodes * (nodes + 1) // 2)
    weight = 0
    for reply in replies(nodes, megabytes):
        weight += 1  # noqa: SIM113  (enumerate would hold the last reply while the next one comes)
        update = checked_update(reply, model)
        if isinstance(update, Failure):
            raise TypeError("a benchmark of honest nodes")
        average.add(update, weight)
        del reply, update
    as_record(average.result())


def flowers(nodes: int, megabytes: int) -> None:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    FedAvg(weighted_by_key="n").aggregate_train(1, replies(nodes, megabytes))


def growth(contender: str, nodes: int, megabytes: int) -> float:
    """Peak resident set above what stood before the first reply but one copy of the sender's, in updates."""
    command = [sys.executable, __file__, "--contender", contender, "--nodes", str(nodes), "--megabytes", str(megabytes)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(told)["updates"])


def measured(contender: str, nodes: int, megabytes: int) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    {"privet": ours, "flower": flowers}[contender](nodes, megabytes)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (after - before) / (megabytes * MIB) - 1  # the sender's own copy is not the server's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--contender", choices=("privet", "flower"))
    asked = parser.parse_args()
    if asked.contender:
        print(json.dumps({"updates": measured(asked.contender, asked.nodes, asked.megabytes)}))
        return
    our, their = (growth(contender, asked.nodes, asked.megabytes) for contender in ("privet", "flower"))
    print(f"privet {our:.2f} updates; Flower's FedAvg {their:.2f} updates; ratio {their / our:.1f}")


if __name__ == "__main__":
    main()
