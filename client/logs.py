"""The local log of a process that runs a task: whatever it prints, kept at the institution and bounded in size."""

import os
from pathlib import Path

# Two files of this size for each run: the newest words count, and a task that prints for days fills no disk.
LOG_BYTES = 4 * 1024 * 1024
_OWNER_ONLY = 0o600


class LocalLog:
    """Takes bytes; a file that is full becomes `NAME.log.1`, and the one before is gone. Mode 0600."""

    def __init__(self, path: Path, most_bytes: int = LOG_BYTES) -> None:
        self.path = path
        self._most_bytes = most_bytes
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, content: bytes) -> None:
        """Write it down; of a piece larger than a file only the end is kept."""
        content = content[-self._most_bytes :]
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _OWNER_ONLY)
        try:
            is_full = os.fstat(descriptor).st_size + len(content) > self._most_bytes
            if not is_full:
                os.write(descriptor, content)
        finally:
            os.close(descriptor)
        if is_full:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self.add(content)
