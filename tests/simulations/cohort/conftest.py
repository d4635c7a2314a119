"""One thread and one seed for torch."""

from steady_torch import _one_thread, _torch_seed

__all__ = ["_one_thread", "_torch_seed"]
