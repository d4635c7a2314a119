"""World: the data of a simulated federation, loaded once: each node's share, and the records that no node owns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..client.tasks.protocol import Facts, Partition, Records, Task, resolved_options
from ..privacy.errors import PlanError, PrivetError, TaskError
from ..privacy.plan import Plan, SimulationSection
from .partition import hold_out, partition


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """`shares`: by node name, in order. `held_out`: owned by no node; a score on them is the simulator's view."""

    task: Task
    facts: Facts
    shares: dict[str, Partition]
    held_out: Records
    section: SimulationSection

    @classmethod
    def of(cls, plan: Plan, task: Task) -> "World":
        """Load, hold out, then split, by the plan's seed. Raises TaskError or PlanError."""
        section = plan.simulation or SimulationSection()
        options = resolved_options(task, plan.model)
        records = _load(task, section, options)
        shared, held = hold_out(len(records), section.held_out, plan.run.seed)
        labels = records.targets.numpy().astype(np.int64)
        shares = [shared[share] for share in partition(labels[shared], section, plan.run.seed)]
        width = len(str(len(shares)))
        return cls(
            task=task,
            facts=task.facts(options),
            shares={f"node-{n:0{width}}": _share(records, share) for n, share in enumerate(shares, start=1)},
            held_out=records.select(torch.from_numpy(held)),
            section=section,
        )

    def labels_of(self, name: str) -> list[int]:
        """How many records of each class a node holds: the simulator's view; no deployment ever sees it."""
        share = self.shares[name]
        labels = share.records.targets[share.indices]
        return [int(count) for count in torch.bincount(labels, minlength=len(self.facts.classes))]


def _share(records: Records, indices: NDArray[np.int64]) -> Partition:
    return Partition(records, torch.from_numpy(indices))


def _load(task: Task, section: SimulationSection, options: dict[str, bool | int | float | str]) -> Records:
    try:
        records = task.load(Path(section.path)) if section.path else task.shipped(options)
    except PrivetError:
        raise
    except Exception as error:  # somebody's loader
        raise TaskError(
            f"task {task.name!r} cannot load its data: {type(error).__name__}: {error}",
            "mend the task's loader",
        ) from error
    if len(records) < 2:
        raise TaskError(f"task {task.name!r} loaded {len(records)} records", "give it data to hold out and to share")
    return records


def check_sizes(plan: Plan, world: World) -> None:
    """What every node would refuse is said before the run is begun."""
    if plan.aggregation.min_nodes > len(world.shares):
        raise PlanError(
            [f"aggregation.min-nodes: {plan.aggregation.min_nodes}, but {len(world.shares)} nodes are simulated"],
            "lower aggregation.min-nodes, or raise simulation.nodes",
        )
    units, largest = "records", max(len(share.indices) for share in world.shares.values())
    if plan.privacy.is_central:
        units, largest = "nodes", len(world.shares)
    if plan.privacy.delta is not None and plan.privacy.delta >= 1 / largest:
        raise PlanError(
            [f"privacy.delta: {plan.privacy.delta:g} is not below 1 / {largest}, one over the largest declared size"],
            f"ask for a smaller delta, well below one over the number of {units}",
        )
