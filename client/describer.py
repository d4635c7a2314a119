"""The describer: says what an institution declared for a run while the run's seat is busy.

A server that comes back asks every node to describe itself, and the node may be training for an hour. What it says
needs the declaration alone. So it has a thread and a connection to the ledger of its own, and the checks are the same.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flwr.app import Context, Message, RecordDict

from ..privacy.channel.flower import run_number
from .app import client_app
from .link import Asked
from .node import Node
from .seat import replied


class Describer:
    """`open_node`: the node that describes, for a run and a request; raises RefusedError where nobody may ask."""

    def __init__(self, open_node: Callable[[str, Message], Node]) -> None:
        self._open_node = open_node
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="describer")

    def put(self, asked: Asked) -> None:
        """Answer this request soon."""
        self._thread.submit(self._answer, asked)

    def close(self) -> None:
        """End, after what has begun."""
        self._thread.shutdown(cancel_futures=True)

    def _answer(self, asked: Asked) -> None:
        def described(message: Message) -> Message:
            with contextlib.closing(self._open_node(asked.run_id, message)) as node:
                context = Context(run_number(asked.run_id), message.metadata.dst_node_id, {}, RecordDict(), {})
                return client_app(lambda _: node)(message, context)

        asked.answer(replied(asked.message, asked.run_id, described))
