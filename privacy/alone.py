"""One process at a time: a lock on a file, which its holder has as long as it lives and the system takes back after."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .channel.files import FOLDER_OWNER_ONLY, OWNER_ONLY
from .errors import UsageError


@contextlib.contextmanager
def only_one(path: Path, message: str, remedy: str, *, with_children: bool = True) -> Iterator[None]:
    """Hold the lock; raise UsageError with these words where another process holds it.

    `with_children`: those that are forked meanwhile hold it too, until the last of them has ended. Without, it is this
    process's alone; then `is_held` does not see it, and the same process may take it twice and loses it once.
    """
    path.parent.mkdir(mode=FOLDER_OWNER_ONLY, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    try:
        take = fcntl.flock if with_children else fcntl.lockf
        take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets lockf say either
        os.close(descriptor)
        raise UsageError(message, remedy) from None
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
