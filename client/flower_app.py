"""A Flower ClientApp in a worker's process, as it comes: installed by the institution, named in its configuration.

Between the node and that process a message is frames.py's frames, each behind its length. The app's Context lives as
long as the process does, so that what an app keeps in `context.state` is there in the next round.
"""

import importlib
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.flower import SERVER_NODE_ID, run_number
from ..privacy.channel.frames import Incoming, encode, read_frame, to_message
from ..privacy.errors import ChannelError, TaskError

_LENGTH = struct.Struct("<I")


class AppBench:
    """The app, and the one Context in which it is called."""

    def __init__(self, app: ClientApp, loaded_from: str, run_id: str, context: Context) -> None:
        self.loaded_from = loaded_from
        self._app = app
        self._run_id = run_id
        self._context = context

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> "AppBench":
        """What the worker's first packet names; raise TaskError where that is no ClientApp, or lies elsewhere."""
        app, loaded_from = _loaded(head["reference"], head["folder"])
        print(f"run {head['run_id']}: app {head['reference']} from {loaded_from}", file=sys.stderr)
        number, node_id = run_number(head["run_id"]), head["node_id"]
        context = Context(number, node_id, head["node_config"], RecordDict(), head["run_config"])
        return cls(app, loaded_from, head["run_id"], context)

    def handle(self, request: bytes | memoryview) -> bytes:
        """The app's reply to a request, both as frames."""
        message = message_of(request, self._run_id, SERVER_NODE_ID, self._context.node_id)
        return frames_of(self._app(message, self._context), self._run_id)


def frames_of(message: Message, run_id: str) -> bytes:
    """A message as one piece of bytes."""
    known = message.metadata.message_id or message.metadata.reply_to_message_id
    outgoing = encode(message, message_id=bytes.fromhex(known), run_id=run_id)
    frames = (outgoing.header_frame, *outgoing.body_frames())
    return b"".join(part for frame in frames for part in (_LENGTH.pack(len(frame)), frame))


def message_of(
    content: bytes | memoryview, run_id: str, source: int, destination: int, reply_to: Metadata | None = None
) -> Message:
    """The message in such bytes; raise ChannelError for anything else."""
    header, *rest = (read_frame(bytes(frame)) for frame in _cut(memoryview(content)))
    if not isinstance(header, pb.Frame) or header.WhichOneof("kind") != "header" or header.header.run_id != run_id:
        raise _malformed()
    incoming, end = Incoming(header.header), rest.pop() if rest else None
    for chunk in rest:
        if isinstance(chunk, pb.Frame):
            raise _malformed()
        incoming.add(chunk)
    if not isinstance(end, pb.Frame) or end.WhichOneof("kind") != "end":
        raise _malformed()
    return to_message(
        incoming.finish(end.end),
        run_id=run_number(run_id),
        src_node_id=source,
        dst_node_id=destination,
        reply_to=reply_to,
    )


def _cut(content: memoryview) -> Iterator[memoryview]:
    if not content.nbytes:
        raise _malformed()
    while content.nbytes:
        if content.nbytes < _LENGTH.size:
            raise _malformed()
        end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        if end > content.nbytes:
            raise _malformed()
        yield content[_LENGTH.size : end]
        content = content[end:]


def _loaded(reference: str, folder: str | None) -> tuple[ClientApp, str]:
    """The object `module:name`, and the file of its module, which must lie in the folder where one is given."""
    module_name, _, path = reference.partition(":")
    module = importlib.import_module(module_name)
    place = getattr(module, "__file__", None)
    if place is None or (folder is not None and not Path(place).resolve().is_relative_to(Path(folder).resolve())):
        raise TaskError(
            f"app {reference}: loaded from {place}, not from {folder}", "see which packages bring a module of that name"
        )
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, ClientApp):
        raise TaskError(f"app {reference}: not a ClientApp", "name the module and the ClientApp in it, as module:app")
    return found, str(place)


def _malformed() -> ChannelError:
    return ChannelError("not the frames of one message", "see the run's local log")
