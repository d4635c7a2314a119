"""AppWorker: an unmodified Flower ClientApp in a process of its own. To the node it is a function of messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from ..privacy.channel.flower import SERVER_NODE_ID
from .flower_app import frames_of, message_of
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
    """One app for one run. Its process holds the app's state between rounds, so it is closed when the run is over."""

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

    def open(self) -> str:
        """Start the process; gives the file that the app was loaded from. Raises TaskError where it cannot."""
        ready = self.served.open()
        return str(ready.head.get("loaded_from")) if ready is not None else ""

    def answer(self, message: Message, seconds: float | None = None) -> Message:
        """The app's reply; raise TaskError where it fails or its process ends, ChannelError for a reply that is none.

        An app that raises leaves its process, and with it the app's state: what it had half done is not trusted.
        """
        reply = self.handle(frames_of(message, self._run_id), seconds)
        return message_of(reply, self._run_id, self._node_id, SERVER_NODE_ID, message.metadata)

    def handle(self, request: bytes, seconds: float | None = None) -> bytes | memoryview:
        """The same for bytes that this process need not understand."""
        return self.served.ask(Packet({}, raw=request), seconds).raw

    def cancel(self, why: str) -> None:
        """End a request that is running. From any thread."""
        self.served.cancel(why)

    def close(self) -> None:
        """Let the process go, and the app's state with it."""
        self.served.close()
