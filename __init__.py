"""privet: institutions train one model together, and each enforces and proves how much privacy it has spent."""

__version__ = "0.1.0"
