"""What a worker of Ray holds: nodes of one run, each with its ledger and its kept answers.

The rules:
1. What is sent to a worker is text and frames of privet's channel, and so is what it sends back. Ray names this class
   to its workers by its module, which is installed there: no code of a run travels, and nothing of it is unpickled.
2. A node is served by one worker at a time, which holds its ledger open. When a worker has ended, another reads on from
   there: what had begun and was not answered is a spent attempt, as after any crash.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from flwr.app import Context, RecordDict

from ..client.app import client_app
from ..client.flower_app import frames_of, message_of
from ..privacy.channel.flower import SERVER_NODE_ID, empty_run, identify_process, run_number
from ..server.run_folder import RunFolder
from .flower import RunNodes
from .local_log import log_to
from .nodes import NodeFolders
from .versions import versions

FIRST_NODE_ID = SERVER_NODE_ID + 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lies, the same for the program and for every worker: paths are absolute.

    `working`: the program's own folder, which a plan's relative paths begin in. `nodes`: how many.
    """

    run_id: str
    root: str
    ledgers: str
    policy: str | None
    working: str
    device: str
    nodes: int

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """What `text` gave."""
        return cls(**json.loads(text))


class NodeActor:
    """Serves the nodes of a run, one request after the other; the data is loaded once."""

    def __init__(self, place: str) -> None:
        self._place = Place.of(place)
        os.chdir(self._place.working)
        folder = RunFolder(Path(self._place.root))
        policy = Path(self._place.policy) if self._place.policy else None
        folders = NodeFolders(Path(self._place.ledgers), folder.root / "answers", policy)
        self._nodes = RunNodes(folder, folders, torch.device(self._place.device))
        self._app = client_app(lambda context: self._nodes.node(context.node_id - FIRST_NODE_ID, self._place.nodes))
        log_to(folder)

    def versions(self) -> str:
        """Of what a run's numbers depend on, here, as JSON."""
        return json.dumps(versions())

    def serve(self, node_id: int, request: bytes) -> bytes:
        """A node's reply to a request, both as frames."""
        run_id = self._place.run_id
        number = run_number(run_id)
        identify_process(empty_run(number), node_id)
        context = Context(number, node_id, {}, RecordDict(), {})
        return frames_of(self._app(message_of(request, run_id, SERVER_NODE_ID, node_id), context), run_id)

    def close(self) -> None:
        """Let go of the ledgers."""
        self._nodes.close()
