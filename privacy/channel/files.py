"""Files of keys and certificates: written whole or not at all, and a private one is its owner's alone."""

import os
import secrets
from pathlib import Path

from ..errors import ChannelError

OWNER_ONLY, READABLE = 0o600, 0o644
FOLDER_OWNER_ONLY = 0o700
LARGEST_FILE = 1 << 16  # bytes: a chain of two certificates takes under 2 KiB


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
