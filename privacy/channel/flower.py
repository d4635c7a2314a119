"""What flwr keeps internal and a Grid cannot do without: touched in this file only, for a release may move it.

Flower keeps the identity of a running app in its process, and takes it as the sender of every new message.
"""

import hashlib

from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["SERVER_NODE_ID", "Run", "RunNotRunningException", "empty_run", "identify_process", "run_number"]

SERVER_NODE_ID = 1


def identify_process(run: Run, node_id: int = SERVER_NODE_ID) -> None:
    """Make messages that are created in this process come from this node, in this run."""
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = run.run_id


def empty_run(run_number: int) -> Run:
    """Flower's Run of that number, without an app."""
    return Run.create_empty(run_number)


def run_number(run_id: str) -> int:
    """The number by which Flower knows a run: 63 bits of its name's SHA-256, the same at every party.

    >>> run_number("run-1")
    2824577193250042522
    """
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "big") >> 1
