"""A file that comes from the server in parts: there whole and as it was promised, or not at all."""

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from ..errors import ChannelError, UsageError


def check_target(path: Path, is_forced: bool) -> None:
    """Raise UsageError, before anything is fetched, where the file may not be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: not a file that can be written", "give a file in a folder that is there")
    if path.exists() and not is_forced:
        raise UsageError(f"{path}: there is a file already", "--force, or another name")


def download(parts: Iterable[bytes], path: Path, *, most: int, sha256: str | None, is_forced: bool) -> int:
    """Write the parts to the file and give its size; at most `most` bytes, of the digest promised, where one was.

    Raises ChannelError where other bytes come, UsageError where a file appeared there meanwhile.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("xb") as file:
            for part in parts:
                size += len(part)
                if size > most:
                    raise ChannelError(f"{path}: more than {most} bytes came", _REMEDY)
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ChannelError(f"{path}: SHA-256 {digest.hexdigest()[:16]}… came, {sha256[:16]}… was promised", _REMEDY)
        if is_forced:
            partial.replace(path)
        else:
            path.hardlink_to(partial)  # never over another
    except FileExistsError:
        raise UsageError(f"{path}: there is a file already", "--force, or another name") from None
    finally:
        partial.unlink(missing_ok=True)
    return size


_REMEDY = "the same command again; if it comes again, ask the coordinator"
