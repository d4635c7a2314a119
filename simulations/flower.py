"""The Flower ClientApp of simulated nodes, for stock Flower's simulation runtime: `flwr run`, Ray.

Flower lets any of its processes serve any node, one after another. So nothing that counts is kept in a process: each
node's ledger and kept answers lie in the run's folder, and its guard reads on from there before it decides.
"""

from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context

from ..client.app import client_app
from ..client.bench import Bench
from ..client.node import Node
from ..client.tasks.registry import load_task
from ..privacy.errors import UsageError
from ..server.run_config import RunConfig
from ..server.run_folder import RunFolder
from .nodes import NodeFolders, simulated_node
from .world import World


class RunNodes:
    """The nodes of one run, as this process serves them: the data is loaded once, a node is made when first asked."""

    def __init__(
        self, folder: RunFolder, folders: NodeFolders | None = None, device: torch.device | None = None
    ) -> None:
        """`folders`: by default those in the run's folder."""
        # Small models on two threads are several times slower than on one, and Flower runs a process for each core.
        torch.set_num_threads(1)
        plan, submission = folder.read()  # as it was begun: a plan's file may have been changed since
        self._folders = folders or NodeFolders(folder.root / "ledgers", folder.root / "answers")
        self._plan = submission.plan
        self._world = World.of(plan, load_task(plan.run.task))
        # Ray shows a process the GPUs that were asked for it, and no others.
        self._bench = Bench(self._world.task, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._nodes: dict[str, Node] = {}

    def node(self, partition: int, partitions: int) -> Node:
        """The node of a partition; raise UsageError unless there are as many partitions as the plan has nodes."""
        names = list(self._world.shares)
        if partitions != len(names) or not 0 <= partition < partitions:
            raise UsageError(
                f"Flower gives partition {partition} of {partitions}, the plan simulates {len(names)} nodes",
                f"flwr run --federation-config num-supernodes={len(names)}, or change simulation.nodes",
            )
        name = names[partition]
        if name not in self._nodes:
            self._nodes[name] = simulated_node(self._world, name, self._plan, self._folders, self._bench.trainer)
        return self._nodes[name]

    def close(self) -> None:
        """Let go of the ledgers."""
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()


def node_of(context: Context) -> Node:
    """The node that a Flower context stands for: see client_app."""
    partition, partitions = (context.node_config.get(key) for key in ("partition-id", "num-partitions"))
    if type(partition) is not int or type(partitions) is not int:
        raise UsageError(
            "this ClientApp simulates nodes, and Flower gives no partition-id and num-partitions",
            "run it on Flower's simulation runtime: examples/flower-app",
        )
    return run_nodes(RunConfig.of(context.run_config).out).node(partition, partitions)


@lru_cache(maxsize=1)
def run_nodes(out: Path) -> RunNodes:
    """Loaded once a process: a memory, not a state, as all that it holds can be read again."""
    return RunNodes(RunFolder(out))


app = client_app(node_of)
