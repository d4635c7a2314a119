"""A Flower ClientApp in a worker's process, as it comes: installed by the institution, named in its configuration.

Between the node and that process a message is frames.py's frames, each behind its length; behind a request, and behind
its reply, stands the app's `context.state` in the same way. The node keeps it and does not look into it.
"""

import importlib
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.flower import SERVER_NODE_ID, empty_run, identify_process, run_number
from ..privacy.channel.frames import Incoming, encode, read_frame, to_message
from ..privacy.errors import ChannelError, TaskError
from .pipe import Packet

STATE = "state"  # in a packet's head: how many of its last bytes are the app's state

_LENGTH = struct.Struct("<I")


class AppBench:
    """The app, and what it is called with."""

    def __init__(self, app: ClientApp, loaded_from: str, run_id: str, context: Context) -> None:
        self.loaded_from = loaded_from
        self._app = app
        self._run_id = run_id
        self._context = context

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> "AppBench":
        """What the worker's first packet names; raise TaskError where that is no ClientApp, or lies elsewhere."""
        number, node_id = run_number(head["run_id"]), head["node_id"]
        identify_process(empty_run(number), node_id)
        app, loaded_from = _loaded(head["reference"], head["folder"])
        print(f"run {head['run_id']}: app {head['reference']} from {loaded_from}", file=sys.stderr)
        context = Context(number, node_id, head["node_config"], RecordDict(), head["run_config"])
        return cls(app, loaded_from, head["run_id"], context)

    def handle(self, asked: Packet) -> Packet:
        """The app's reply to a request, and its state as it is then."""
        request, state = parts_of(asked)
        context = replace(
            self._context,
            node_config=dict(self._context.node_config),
            run_config=dict(self._context.run_config),
            state=self._message(state).content if state else RecordDict(),
        )
        reply = frames_of(self._app(self._message(request), context), self._run_id)
        kept = self._state_frames(context.state)
        return Packet({STATE: len(kept)}, raw=b"".join((reply, kept)))

    def _message(self, content: bytes | memoryview) -> Message:
        return message_of(content, self._run_id, SERVER_NODE_ID, self._context.node_id)

    def _state_frames(self, state: RecordDict) -> bytes:
        if not state:
            return b""
        metadata = Metadata(self._context.run_id, "00" * 16, 0, 0, "", "", 0.0, 0.0, "query")
        carrier: Message = Message(content=state, metadata=metadata)  # type: ignore[call-overload]  # Flower's own way
        return frames_of(carrier, self._run_id)


def parts_of(packet: Packet) -> tuple[memoryview, memoryview]:
    """The message and the state in a packet; raise ChannelError where it says nothing of a state."""
    content, size = memoryview(packet.raw), packet.head.get(STATE)
    if type(size) is not int or not 0 <= size < content.nbytes:
        raise _malformed()
    end = content.nbytes - size
    return content[:end], content[end:]


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
