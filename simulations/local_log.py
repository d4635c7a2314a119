"""The nodes' local logs, of which nothing leaves a deployment: in a simulation one file, beside the results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..server.run_folder import RunFolder

_NODES = logging.getLogger("privet.node")


def log_to(folder: RunFolder) -> logging.Handler:
    """Add what nodes say to the run's file, which is there when one has said something."""
    handler = logging.FileHandler(folder.root / "nodes.log", delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    _NODES.addHandler(handler)
    return handler


@contextmanager
def local_log(folder: RunFolder) -> Iterator[None]:
    """While it lasts what nodes say goes to the run's file, and nowhere else."""
    handler = log_to(folder)
    propagate, _NODES.propagate = _NODES.propagate, False
    try:
        yield
    finally:
        _NODES.removeHandler(handler)
        _NODES.propagate = propagate
        handler.close()
