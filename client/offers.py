"""Offers: the versions of the tasks that a node offers, asked of a short-lived process.

A version is a constant in a task's code, and that code runs in no process that holds keys. What was told is remembered
for as long as the package that brings the task stays the same.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from ..privacy.errors import TaskError
from ..privacy.plan import TASK_GROUP
from .child import environment_of

log = logging.getLogger("privet.node")

_SECONDS = 120.0  # to import torch and a few tasks
_LONGEST_VERSION = 100
_Packages = tuple[tuple[str, str | None, str | None], ...]


class Offers:
    """What is installed, as far as it was asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, _Packages], str | None] = {}

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The versions of these tasks; one that is not installed or does not load is left out, and logged."""
        keys = {name: (name, _packages(name)) for name in sorted(set(names))}
        unknown = [name for name, key in keys.items() if key[1] and key not in self._known]
        for name, version in (_described(unknown) if unknown else {}).items():
            self._known[keys[name]] = version
        found = {name: self._known.get(key) for name, key in keys.items()}
        for name in sorted(name for name, version in found.items() if version is None):
            log.warning("task %s cannot be offered: it is not installed, or does not load", name)
        return {name: version for name, version in found.items() if version is not None}


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
