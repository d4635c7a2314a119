"""Whether Ray can be used here: asked before a run is begun, and without importing it."""

import os
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec

from ..privacy.errors import UsageError

ADDRESS = "RAY_ADDRESS"  # Ray's own variable: the cluster that is used
_CONNECT_SECONDS = 5.0  # Ray itself tries for minutes


def require_ray(executable: str = sys.executable, find: Callable[[str], object] = find_spec) -> None:
    """Raise UsageError where it cannot."""
    if find("ray") is None:
        raise UsageError("--engine ray: Ray is not installed", "pip install 'privet[ray]', or --engine auto")
    if " " in executable and ADDRESS not in os.environ:
        raise UsageError(
            f"--engine ray: Ray starts no worker from a path with a space: {executable}",
            "install privet into an environment whose path has none, or --engine auto",
        )
    _check_address(os.environ.get(ADDRESS, ""))


def _check_address(address: str) -> None:
    """Somebody must listen there: `HOST:PORT`. Ray's own words (`auto`, `local`) pass."""
    if "://" in address:
        raise UsageError(f"{ADDRESS}={address}: not a cluster's HOST:PORT", f"give {ADDRESS} as `ray start` prints it")
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{ADDRESS}={address}: no cluster of Ray there: {error}", f"start one with `ray start`, or unset {ADDRESS}"
        ) from None
