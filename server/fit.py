"""Which connected nodes a run asks: who offers its task in the version that the others have, or its app.

Nodes with another version of a task compute another model. The version is the plan's, or else the one that most nodes
offer when the run is first looked at (of two as common the higher text); from then on it stays. Whom the server's
policy does not let join is not asked, and has no say in the version.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from .stream import NodeView

Fit = Callable[[Iterable[NodeView]], tuple[list[NodeView], dict[str, str]]]


def fit_permitted(fit: Fit, denied: Callable[[list[NodeView]], dict[str, str]]) -> Fit:
    """Of the nodes that the policy lets join, those that fit. `denied`: those that it does not, and why (joins.py)."""

    def permitted(nodes: Iterable[NodeView]) -> tuple[list[NodeView], dict[str, str]]:
        nodes = list(nodes)
        refused = denied(nodes)
        chosen, notes = fit([node for node in nodes if node.name not in refused])
        return chosen, notes | refused

    return permitted


def fit_for_task(task: str, version: str | None, keep: Callable[[str], None]) -> "TaskFit":
    """Nodes that offer a task. `version`: as it was kept before, if it was; `keep` is told the one that was chosen."""
    return TaskFit(task, version, keep)


class TaskFit:
    """Chooses the nodes that offer one task in one version."""

    def __init__(self, task: str, version: str | None, keep: Callable[[str], None]) -> None:
        self._task = task
        self._version = version
        self._keep = keep

    def __call__(self, nodes: Iterable[NodeView]) -> tuple[list[NodeView], dict[str, str]]:
        """The nodes to ask, and why each of the others is not."""
        nodes = list(nodes)
        version = self._chosen(nodes)
        fit, notes = [], dict[str, str]()
        for node in nodes:
            offered = node.tasks.get(self._task)
            if node.is_paused:
                notes[node.name] = "paused"
            elif offered is None:
                notes[node.name] = f"offers no data set for task {self._task}"
            elif offered != version:
                notes[node.name] = f"has task {self._task} {offered}, the run {version}"
            else:
                fit.append(node)
        return fit, notes

    def _chosen(self, nodes: Iterable[NodeView]) -> str | None:
        if self._version is None:
            offered = Counter(node.tasks[self._task] for node in nodes if self._task in node.tasks)
            if offered:
                self._version = max(offered, key=lambda version: (offered[version], version))
                self._keep(self._version)
        return self._version


def fit_for_app(app: str) -> Fit:
    """Nodes whose institution allowed a Flower app."""

    def fit(nodes: Iterable[NodeView]) -> tuple[list[NodeView], dict[str, str]]:
        chosen, notes = [], dict[str, str]()
        for node in nodes:
            if node.is_paused:
                notes[node.name] = "paused"
            elif app not in node.apps:
                notes[node.name] = f"does not allow app {app}"
            else:
                chosen.append(node)
        return chosen, notes

    return fit
