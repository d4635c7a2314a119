"""Offers: the versions of the tasks that a node offers, asked of a short-lived process.

A version is a constant in a task's code, and that code runs in no process that holds keys. What was told is remembered
for as long as the package that brings the task stays the same; that it did not tell, for ten minutes at most.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from ..privacy.errors import TaskError
from ..privacy.plan import TASK_GROUP
from .child import environment_of

log = logging.getLogger("privet.node")

_SECONDS = 120.0  # to import torch and a few tasks
_LONGEST_VERSION = 100
FAILED_SECONDS = 600.0  # until a task that did not say its version is asked again
_Packages = tuple[tuple[str, str | None, str | None], ...]
_Task = tuple[str, _Packages]  # a name, and who brings it


class Offers:
    """What is installed, as far as it was asked for. `clock`: in seconds, never backwards."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: dict[_Task, str | None] = {}
        self._failed: dict[_Task, float] = {}
        self._clock = clock

    @property
    def is_due(self) -> bool:
        """Whether a task that did not say its version may be asked again."""
        return any(self._clock() >= failed + FAILED_SECONDS for failed in self._failed.values())

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The versions of these tasks; one that is not installed or does not load is left out, and logged."""
        keys = {name: (name, _packages(name)) for name in sorted(set(names))}
        if self.is_due:
            self._failed.clear()
        self._ask([key for key in keys.values() if key[1] and key not in self._known and key not in self._failed])
        found = {name: self._known.get(key) for name, key in keys.items()}
        for name in sorted(name for name, version in found.items() if version is None):
            log.warning("task %s cannot be offered: it is not installed, or does not load", name)
        return {name: version for name, version in found.items() if version is not None}

    def _ask(self, tasks: Sequence[_Task]) -> None:
        """Ask all at once; where that fails, each alone, so that one that fails hides no other."""
        if not tasks:
            return
        try:
            told = _described([name for name, _ in tasks])
            self._known.update({task: told[task[0]] for task in tasks})
        except TaskError as error:
            if len(tasks) > 1:
                for task in tasks:
                    self._ask([task])
            else:
                log.error("%s; try: %s", error.message, error.remedy)
                self._failed[tasks[0]] = self._clock()


def _packages(name: str) -> _Packages:
    """Who brings a task: reference, package and version. Nothing is imported."""
    points = entry_points(group=TASK_GROUP, name=name)
    return tuple(sorted((p.value, p.dist.name if p.dist else None, p.dist.version if p.dist else None) for p in points))


def _described(names: Sequence[str]) -> dict[str, str | None]:
    command = [sys.executable, "-P", "-m", "privet.client.workshop", "--describe", *names]
    try:
        told = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
            env=environment_of(os.environ),
        )
        versions = json.loads(told.stdout)
        return {name: _version(versions[name]) for name in names}
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"the tasks {', '.join(names)} do not say their versions: {type(error).__name__}", "privet tasks lists them"
        ) from None


def _version(told: object) -> str | None:
    return told if isinstance(told, str) and 0 < len(told) <= _LONGEST_VERSION else None
