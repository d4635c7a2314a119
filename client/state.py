"""What the institution has told its node to do: paused or not, and the runs that it withdrew from. A file in its home.

`privet node pause` and its like write it; a node that runs looks at it as it looks at its settings, so that a change
holds without a restart.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..privacy.channel.files import write_whole
from ..privacy.errors import UsageError

MOST_WITHDRAWN = 10_000


@dataclass(frozen=True, slots=True)
class Orders:
    """`withdrawn`: run ids, oldest first."""

    is_paused: bool = False
    withdrawn: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)).encode() + b"\n")


def read_orders(path: Path) -> Orders:
    """The orders in a file; none where there is no file. Raises UsageError for what is not privet's."""
    try:
        told = json.loads(path.read_bytes()) if path.exists() else {}
        withdrawn = tuple(str(run) for run in told.get("withdrawn", ()))
        return Orders(bool(told.get("is_paused", False)), withdrawn[-MOST_WITHDRAWN:])
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise UsageError(f"{path}: not what privet wrote", "remove it: the node then is not paused") from None
