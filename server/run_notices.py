"""Notices: who looks on at a run is woken when something happens. What the book has not yet comes along in passing."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

# Notices in passing that one onlooker may have unread; older ones are let go. The book has what matters of them.
_MOST_UNREAD = 1000

Wake = Callable[[], None]
Notice = dict[str, Any]


class Onlooker:
    """One who follows a run. `wake` is called from the run's thread and must return at once."""

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self._unread: deque[Notice] = deque(maxlen=_MOST_UNREAD)

    def hand(self, notice: Notice) -> None:
        """Something that is told in passing."""
        self._unread.append(notice)

    def read(self) -> list[Notice]:
        """What was told since the last time."""
        found = []
        while self._unread:
            found.append(self._unread.popleft())
        return found


class Notices:
    """Onlookers by run id. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._onlookers: dict[str, list[Onlooker]] = {}

    def look_on(self, run_id: str, wake: Wake) -> Onlooker:
        """From now on `wake` is called whenever something happens to the run."""
        onlooker = Onlooker(wake)
        with self._lock:
            self._onlookers.setdefault(run_id, []).append(onlooker)
        return onlooker

    def look_away(self, run_id: str, onlooker: Onlooker) -> None:
        """No more calls."""
        with self._lock:
            left = [other for other in self._onlookers.get(run_id, []) if other is not onlooker]
            if left:
                self._onlookers[run_id] = left
            else:
                self._onlookers.pop(run_id, None)

    def tell(self, run_id: str, notice: Notice | None = None) -> None:
        """Wake who looks on; hand them the notice, if there is one."""
        with self._lock:
            onlookers = list(self._onlookers.get(run_id, []))
        for onlooker in onlookers:
            if notice is not None:
                onlooker.hand(notice)
            onlooker.wake()
