"""Which tasks are installed here: entry points of the group `privet.tasks`."""

import difflib
from importlib.metadata import EntryPoint, entry_points

from ...privacy.errors import TaskError
from ...privacy.plan import TASK_GROUP
from .protocol import Task

_PARTS = ("name", "version", "options", "facts", "model", "loss", "metrics", "load", "shipped")
_ONE = "uninstall all packages but one of those that bring it"


def installed_tasks() -> dict[str, EntryPoint]:
    """The entry points by name, in alphabetical order; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=TASK_GROUP), key=lambda point: point.name)}


def load_task(name: str) -> Task:
    """The installed task of that name; raise TaskError when there is none, or when it fails to load."""
    points = installed_tasks()
    offered = {point.value for point in entry_points(group=TASK_GROUP, name=name)}
    if len(offered) > 1:  # the policy that allows a name must know which code that is
        raise TaskError(f"task {name!r} is brought by more than one package: {', '.join(sorted(offered))}", _ONE)
    if name not in points:
        nearest = difflib.get_close_matches(name, points, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"installed: {', '.join(points) or 'none'}"
        raise TaskError(f"unknown task {name!r}; {hint}", "privet tasks lists what is installed here")
    try:
        task = points[name].load()()
    except Exception as error:  # whatever somebody's module does at import
        raise TaskError(
            f"task {name!r} does not load: {type(error).__name__}: {error}",
            "mend or reinstall the package that brings it",
        ) from error
    missing = [part for part in _PARTS if not hasattr(task, part)]
    if missing or getattr(task, "name", None) != name:
        raise TaskError(
            f"{points[name].value} is not the task {name!r}: {', '.join(missing) or 'it has another name'}",
            "privet tasks new NAME writes one that is",
        )
    checked: Task = task
    return checked
