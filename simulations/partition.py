"""How a simulator splits records over nodes. Each gives, for every node, int64 indices into the records; together they
hold each record once.

- iid: shuffled, equal sizes.
- dirichlet(alpha): each class is dealt out by a Dirichlet draw (Hsu et al. 2019): small alpha, few classes a node.
- shards(k): sorted by class, cut into nodes x k shards, k to each node (McMahan et al. 2017).
- sizes: shuffled, in proportion to the plan's numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..privacy.errors import PlanError
from ..privacy.plan import SimulationSection

Indices = NDArray[np.int64]

# A Dirichlet draw that leaves a node empty is drawn again; a plan that asks for the impossible is told so.
_MOST_DRAWS = 1000


def hold_out(count: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split `count` records into those that are shared out and those that no node owns."""
    order = np.random.default_rng([seed, 1]).permutation(count)
    held = max(1, round(count * share))
    return np.sort(order[held:]), np.sort(order[:held])


def partition(labels: NDArray[np.int64], section: SimulationSection, seed: int) -> list[Indices]:
    """The share of each node, as indices into `labels` [N]; raise PlanError when a node would get no record."""
    if section.nodes > len(labels):
        raise PlanError(
            [f"simulation.nodes: {section.nodes} nodes share {len(labels)} records"],
            "ask for fewer nodes than records",
        )
    rng = np.random.default_rng([seed, 2])
    shares = _KINDS[section.partition](labels, section, rng)
    if any(len(share) == 0 for share in shares):
        raise PlanError(
            [f"simulation.partition: {section.partition!r} leaves a node without records"],
            "ask for fewer nodes, a larger alpha, or more even sizes",
        )
    return [np.sort(share) for share in shares]


def _iid(labels: NDArray[np.int64], section: SimulationSection, rng: np.random.Generator) -> list[Indices]:
    return _cut(rng.permutation(len(labels)), np.ones(section.nodes))


def _sizes(labels: NDArray[np.int64], section: SimulationSection, rng: np.random.Generator) -> list[Indices]:
    return _cut(rng.permutation(len(labels)), np.asarray(section.sizes))


def _shards(labels: NDArray[np.int64], section: SimulationSection, rng: np.random.Generator) -> list[Indices]:
    each = section.shards_per_node or 1
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_class, section.nodes * each)
    order = rng.permutation(len(shards))
    return [np.concatenate([shards[i] for i in order[n * each : (n + 1) * each]]) for n in range(section.nodes)]


def _dirichlet(labels: NDArray[np.int64], section: SimulationSection, rng: np.random.Generator) -> list[Indices]:
    concentration = np.full(section.nodes, section.alpha)
    for _ in range(_MOST_DRAWS):
        parts = [
            _cut(rng.permutation(np.flatnonzero(labels == label)), rng.dirichlet(concentration))
            for label in np.unique(labels)
        ]
        shares = [np.concatenate(share) for share in zip(*parts, strict=True)]
        if all(len(share) for share in shares):
            return shares
    return shares


def _cut(order: Indices, proportions: Sequence[float] | NDArray[np.float64]) -> list[Indices]:
    """Consecutive pieces of `order`, in these proportions."""
    ends = np.cumsum(np.asarray(proportions, dtype=np.float64))
    return np.split(order, np.round(ends[:-1] / ends[-1] * len(order)).astype(np.int64))


_KINDS: dict[str, Callable[[NDArray[np.int64], SimulationSection, np.random.Generator], list[Indices]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "sizes": _sizes,
}
