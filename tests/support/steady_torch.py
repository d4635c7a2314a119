"""One thread for torch: the models here are small, and on a shared machine more threads only wait for one another."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _torch_seed() -> None:
    """Tests that draw from torch's own generator draw the same every time."""
    torch.manual_seed(1)
