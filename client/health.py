"""Whether a node runs in a home and is connected, from what it leaves in files: no key, no network, no library.

The node holds a lock as long as it lives, and touches its status file every few seconds.
"""

import json
import time
from pathlib import Path
from typing import Any

from ..privacy.alone import is_held
from ..privacy.errors import ChannelError
from ..privacy.home import Home

BEAT_SECONDS = 10.0  # between two touches of the status file
STALE_SECONDS = 90.0  # a node that did not touch it so long hangs
_SEE = "privet node status, and the node's log"
_LARGEST_STATUS = 1 << 20  # bytes


def lock_of(home: Home) -> Path:
    """The file that a running node has locked."""
    return home.root / "node.lock"


def is_running(home: Home) -> bool:
    """Whether a node runs in this home."""
    return is_held(lock_of(home))


def told_status(home: Home) -> dict[str, Any]:
    """What the node said of itself last; empty where it said nothing."""
    try:
        with home.status.open("rb") as file:
            told = json.loads(file.read(_LARGEST_STATUS))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def check_connected(home: Home, now: float | None = None) -> str:
    """A line that says the node runs and is connected; raise ChannelError where it does not. `now`: Unix seconds."""
    if not is_running(home):
        raise ChannelError(f"no node runs in {home.root}", "privet node")
    told = told_status(home)
    if not told:
        raise ChannelError("the node has not said yet how it stands", _SEE)
    age = (time.time() if now is None else now) - home.status.stat().st_mtime
    if age > STALE_SECONDS:
        raise ChannelError(f"the node has said nothing for {age:.0f} s; allowed are {STALE_SECONDS:.0f}", _SEE)
    state = str(told.get("state"))
    if state != "connected":
        why = f": {told['why']}" if told.get("why") else ""
        raise ChannelError(f"the node is not connected but {state}{why}", _SEE)
    return f"connected since {told.get('since')} (process {told.get('pid')})"
