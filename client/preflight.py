"""What can go wrong later is looked at right after joining: one line a check."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..privacy.channel.member import Member
from ..privacy.errors import ChannelError
from .join import SECONDS, Joined, reached

_LEAST_FREE = 1 << 30  # bytes: kept answers and checkpoints of small models take less
_GPU_FILES = ("/dev/nvidia0", "/dev/kfd")  # of NVIDIA's driver and of AMD's; torch would take seconds to ask


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    is_fine: bool
    text: str


def preflight(joined: Joined, home: Path, seconds: float = SECONDS) -> Iterator[Check]:
    """Look at clock, versions, disk, GPU, and whether the main port lets this member in, within `seconds`."""
    yield Check("clock", True, f"{joined.clock_difference:+.1f} s from the server's")
    yield Check("versions", True, f"privet {__version__}, Python {platform.python_version()}")
    yield from place(joined.member, home, seconds)


def place(member: Member, home: Path, seconds: float = SECONDS) -> Iterator[Check]:
    """Look at this machine, and whether the main port lets the member in."""
    free = shutil.disk_usage(home).free
    yield Check("disk", free >= _LEAST_FREE, f"{free / (1 << 30):.1f} GiB free under {home}")
    has_gpu = any(Path(device).exists() for device in _GPU_FILES) or shutil.which("nvidia-smi") is not None
    yield Check("GPU", True, "found" if has_gpu else "none found; training will use the CPU")
    address = member.address
    try:
        yield Check("main port", True, f"{address} let this member in, {1e3 * reached(member, seconds):.0f} ms")
    except ChannelError as error:
        yield Check("main port", False, error.message)
