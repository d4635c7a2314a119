"""Whether Ray can be used here: asked before a run is begun, and without importing it."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

from ..privacy.errors import UsageError

ADDRESS = "RAY_ADDRESS"  # Ray's own variable: the cluster that is used


def require_ray(executable: str = sys.executable, find: Callable[[str], object] = find_spec) -> None:
    """Raise UsageError where it cannot."""
    if find("ray") is None:
        raise UsageError("--engine ray: Ray is not installed", "pip install 'privet[ray]', or --engine auto")
    if " " in executable and ADDRESS not in os.environ:
        raise UsageError(
            f"--engine ray: Ray starts no worker from a path with a space: {executable}",
            "install privet into an environment whose path has none, or --engine auto",
        )
