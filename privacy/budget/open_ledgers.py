"""OpenLedgers: how many ledgers of one process have their files open at once. For simulations of thousands of nodes.

An open ledger costs three file descriptors and a page cache; one that is idle needs neither. The least recently used
one lets go of its file, and opens it again when it is asked: what it had read then must still be there (ledger.py).
"""

from collections import OrderedDict
from typing import Protocol

# Three descriptors each, where 1024 are what many systems allow a process.
MOST_OPEN = 192


class Closable(Protocol):
    """What has a file open, and can do without."""

    def let_go(self) -> bool:
        """Close the file until it is needed; False where that cannot be now."""
        ...


class OpenLedgers:
    """Those that have their files open, the least recently used first. For one thread, as ledgers are."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._open: OrderedDict[Closable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def used(self, ledger: Closable) -> None:
        """It is used now: others may have to let go of their files."""
        if ledger in self._open:
            self._open.move_to_end(ledger)
            return
        while len(self._open) >= self._most and self._let_one_go():
            pass
        self._open[ledger] = None

    def forget(self, ledger: Closable) -> None:
        """It is closed for good."""
        self._open.pop(ledger, None)

    def _let_one_go(self) -> bool:
        for oldest in list(self._open):
            if oldest.let_go():
                del self._open[oldest]
                return True
        return False
