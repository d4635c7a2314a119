"""An installed task, loaded: its module is imported, and what it says of itself is checked."""

from ...privacy.errors import TaskError
from .installed import installed_task, installed_tasks
from .protocol import Task

__all__ = ["installed_tasks", "load_task"]

_PARTS = ("name", "version", "options", "facts", "model", "loss", "metrics", "load", "shipped")


def load_task(name: str) -> Task:
    """The installed task of that name; raise TaskError when there is none, or when it fails to load."""
    point = installed_task(name)
    try:
        task = point.load()()
    except Exception as error:  # whatever somebody's module does at import
        raise TaskError(
            f"task {name!r} does not load: {type(error).__name__}: {error}",
            "mend or reinstall the package that brings it",
        ) from error
    missing = [part for part in _PARTS if not hasattr(task, part)]
    if missing or getattr(task, "name", None) != name:
        raise TaskError(
            f"{point.value} is not the task {name!r}: {', '.join(missing) or 'it has another name'}",
            "privet tasks new NAME writes one that is",
        )
    checked: Task = task
    return checked
