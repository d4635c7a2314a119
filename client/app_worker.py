"""AppWorker: an unmodified Flower ClientApp in a process of its own. To the node it is a function of messages.

What the app keeps in `context.state` goes to the process with each request and comes back with the reply. So it is
there in the next round though the process was lost or let go, and a request that fails changes nothing of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from ..privacy.channel.flower import SERVER_NODE_ID
from .flower_app import STATE, frames_of, message_of, parts_of
from .pipe import Packet
from .served import Served, WorkerSettings

Config = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class AppReference:
    """What the institution allowed: `module:name`, and the folder from which it must be loaded, if it says one."""

    reference: str
    folder: Path | None = None
    node_config: Config = field(default_factory=dict)


class AppWorker:
    """One app for one run, and the app's state."""

    def __init__(
        self, app: AppReference, run_id: str, node_id: int, run_config: Config, settings: WorkerSettings
    ) -> None:
        self._run_id = run_id
        self._node_id = node_id
        opening = {
            "serve": "app",
            "reference": app.reference,
            "folder": str(app.folder) if app.folder else None,
            "node_config": dict(app.node_config),
            "run_config": dict(run_config),
            "run_id": run_id,
            "node_id": node_id,
        }
        self.served = Served(run_id, opening, settings)
        self._state = b""

    def open(self) -> str:
        """Start the process; gives the file that the app was loaded from. Raises TaskError where it cannot."""
        ready = self.served.open()
        return str(ready.head.get("loaded_from")) if ready is not None else ""

    def answer(self, message: Message, seconds: float | None = None) -> Message:
        """The app's reply; raise TaskError where it fails or its process ends, ChannelError for a reply that is none.

        An app that raises loses its process: what it had half done is not trusted.
        """
        request = frames_of(message, self._run_id)
        asked = Packet({STATE: len(self._state)}, raw=b"".join((request, self._state)))
        told = self.served.ask(asked, seconds)
        reply, state = parts_of(told)
        answer = message_of(reply, self._run_id, self._node_id, SERVER_NODE_ID, message.metadata)
        self._state = bytes(state)  # a view would hold the reply
        return answer

    @property
    def has_state(self) -> bool:
        """Whether the app keeps something for the next round."""
        return bool(self._state)

    def forget(self) -> None:
        """Begin anew: let the app's state go."""
        self._state = b""

    def rest(self) -> None:
        """Let the process go until it is needed again; the app's state stays."""
        self.served.rest()

    def cancel(self, why: str) -> None:
        """End a request that is running. From any thread."""
        self.served.cancel(why)

    def close(self) -> None:
        """Let the process go, and the app's state."""
        self.forget()
        self.served.close()
