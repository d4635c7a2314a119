"""Files that are written whole or not at all, or line by line; a private one is its owner's alone."""

import errno
import os
import secrets
from pathlib import Path

from ..errors import ChannelError

OWNER_ONLY, READABLE = 0o600, 0o644
FOLDER_OWNER_ONLY = 0o700
LARGEST_FILE = 1 << 16  # bytes: a chain of two certificates takes under 2 KiB
_AS_THE_MASK_SAYS = 0o666
_TAIL_BYTES = 1 << 16  # read at once, where the end of the last whole line is looked for


def write_whole(path: Path, content: bytes, mode: int = READABLE) -> None:
    """Put the content in place of the file, durably; a crash leaves the old file or the new one."""
    path.parent.mkdir(mode=FOLDER_OWNER_ONLY, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    make_durable(path.parent)


def append_lines(path: Path, content: bytes, survives_power_cut: bool = False) -> None:
    """Add whole lines, all or none: a torn one would stand before what is written when there is room again.

    What a crash or a power cut has torn off before is cut away first. Nobody else may write meanwhile.
    """
    descriptor = _opened_to_append(path)
    try:
        before = _without_torn_line(descriptor)
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if survives_power_cut:
                os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _opened_to_append(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    try:
        return os.open(path, flags, _AS_THE_MASK_SAYS)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, _AS_THE_MASK_SAYS)


def _without_torn_line(descriptor: int) -> int:
    """Cut off a last line that does not end; gives the file's length."""
    length = end = os.lseek(descriptor, 0, os.SEEK_END)
    is_torn = length > 0 and os.pread(descriptor, 1, length - 1) != b"\n"
    while is_torn and end > 0:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if is_torn:
        os.ftruncate(descriptor, end)
    return end


def read_file(path: Path, remedy: str) -> bytes:
    """The content of a small file; raise ChannelError with the remedy where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ChannelError(f"{path}: cannot be read: {error.strerror}", remedy) from None
    if len(content) > LARGEST_FILE:
        raise ChannelError(f"{path}: longer than {LARGEST_FILE} bytes", remedy)
    return content


def read_private(path: Path, remedy: str) -> bytes:
    """The content of a file that only its owner may read; raise ChannelError where others can."""
    content = read_file(path, remedy)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ChannelError(f"{path}: others may read this key", f"chmod 600 {path}, and ask who has read it")
    return content


def make_durable(folder: Path) -> None:
    """A rename is durable when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
