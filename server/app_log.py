"""What a Flower app says through Flower's logger while it runs: kept in its run's folder, told to who looks on.

Flower's strategies tell rounds, failures and aggregated metrics there and nowhere else. The logger is the process' own;
what an app says is known by the thread of its run. Beside that, only what goes wrong is logged, as before.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Told each line, without characters that a terminal would act on.
Tell = Callable[[str], None]

LONGEST_LINE = 500  # characters


class AppLog(logging.Filter):
    """The lines of the apps under way, by thread. One for a server."""

    def __init__(self, logger: str = "flwr") -> None:
        super().__init__()
        self._logger = logging.getLogger(logger)
        self._tells: dict[int, Tell] = {}
        self._level = self._logger.level
        self._lock = threading.Lock()

    @contextmanager
    def told(self, tell: Tell) -> Iterator[None]:
        """From now on, what is logged in this thread is told as well."""
        thread = threading.get_ident()
        with self._lock:
            if not self._tells:
                self._level = self._logger.level
                self._logger.addFilter(self)
                self._logger.setLevel(logging.INFO)
            self._tells[thread] = tell
        try:
            yield
        finally:
            with self._lock:
                del self._tells[thread]
                if not self._tells:
                    self._logger.removeFilter(self)
                    self._logger.setLevel(self._level)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell the line; let it pass where the logger would have."""
        tell = self._tells.get(record.thread or 0)
        if tell is not None:
            for line in record.getMessage().splitlines():
                if line.strip():
                    tell("".join(one if one.isprintable() else " " for one in line)[:LONGEST_LINE])
        return record.levelno >= self._level
