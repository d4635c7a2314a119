"""Versions: of privet, and of what the numbers of a run depend on."""

import platform
from importlib.metadata import version

from .. import __version__


def versions() -> dict[str, str]:
    """What the run was made with."""
    libraries = ("torch", "flwr", "opacus", "dp-accounting", "numpy")
    return {
        "privet": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }
