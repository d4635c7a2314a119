"""Which tasks are installed here: entry points of the group `privet.tasks`. Nothing is imported to know it."""

import difflib
from importlib.metadata import EntryPoint, entry_points

from ...privacy.errors import TaskError
from ...privacy.plan import TASK_GROUP

_ONE = "uninstall all packages but one of those that bring it"


def installed_tasks() -> dict[str, EntryPoint]:
    """The entry points by name, in alphabetical order."""
    return {point.name: point for point in sorted(entry_points(group=TASK_GROUP), key=lambda point: point.name)}


def installed_task(name: str) -> EntryPoint:
    """The entry point of one task; raise TaskError where there is none, or more than one."""
    offered = {point.value for point in entry_points(group=TASK_GROUP, name=name)}
    if len(offered) > 1:  # the policy that allows a name must know which code that is
        raise TaskError(f"task {name!r} is brought by more than one package: {', '.join(sorted(offered))}", _ONE)
    points = installed_tasks()
    if name not in points:
        nearest = difflib.get_close_matches(name, points, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"installed: {', '.join(points) or 'none'}"
        raise TaskError(f"unknown task {name!r}; {hint}", "privet tasks lists what is installed here")
    return points[name]
