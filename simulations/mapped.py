"""A file that lies in memory, which processes share, and whose parts have their place on the disk before they are used.

Such a file is sparse: what is never used takes no room. But where a page has no place, and the disk has none left, to
write to it ends the process without a word (SIGBUS). So room is made first, and there a full disk can be said.
"""

import errno
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO, cast

from ..privacy.errors import CheckpointError

# What a file system says that cannot make room without writing.
_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_WRITTEN_AT_ONCE = 2**20  # bytes


class MappedFile:
    """`length` bytes at `path`: zeros, or what a file of that length holds. Without a path it has no name.

    Then it lies in memory alone where the system has such files, and is gone with the processes. Raises CheckpointError
    where the disk has no room.
    """

    def __init__(self, path: Path | None, length: int) -> None:
        self._path = path
        try:
            with nameless() if path is None else _opened(path, length) as file:
                file.truncate(length)
                self.memory = mmap.mmap(file.fileno(), length)
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        weakref.finalize(self, os.close, self._descriptor)

    def make_room(self, start: int, end: int) -> None:
        """Give the bytes from `start` to `end` their place; what they hold stays. Nobody may be writing to them."""
        try:
            _reserve(self._descriptor, start, end - start)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> CheckpointError:
        name = "a round's updates, in memory" if self._path is None else str(self._path)
        return CheckpointError(f"{name}: cannot be written: {error.strerror}", "free space, then resume")


def _reserve(descriptor: int, start: int, length: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        _write_back(descriptor, start, length)
        return
    try:
        os.posix_fallocate(descriptor, start, length)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        _write_back(descriptor, start, length)


def _write_back(descriptor: int, start: int, length: int) -> None:
    """Where room cannot be made otherwise: zeros that have no place yet are written like whatever else is there."""
    end = start + length
    while start < end:
        content = os.pread(descriptor, min(_WRITTEN_AT_ONCE, end - start), start)
        written = os.pwrite(descriptor, content, start)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        start += written


def _opened(path: Path, length: int) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("r+b" if path.exists() and path.stat().st_size == length else "w+b")


def nameless() -> BinaryIO:
    """A file without a name: in memory where the system has such files (Linux, but not every Python was built so)."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("privet"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())
