"""Messages on their way as frames, and back, without a wire."""

from collections.abc import Iterable

from flwr.app import Error, Message, Metadata, RecordDict
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.frames import LIMITS, Incoming, Limits, Parts, PayloadMemory, encode, read_frame
from privet.privacy.errors import ChannelError

MESSAGE_ID = bytes(range(16))


def message_of(content: RecordDict | Error, group_id: str = "g", ttl: float = 60.0) -> Message:
    """A request from the server (1) to node 5."""
    metadata = Metadata(7, "", 1, 5, "", group_id, 1700000000.25, ttl, "train")
    held = {"error": content} if isinstance(content, Error) else {"content": content}
    return Message(**held, metadata=metadata)


def frames_of(message: Message, payloads: PayloadMemory | None = None, pack: bool = False) -> list[bytes]:
    """Everything that a message sends, header first."""
    outgoing = encode(message, message_id=MESSAGE_ID, run_id="run-1", payloads=payloads, pack=pack)
    return [outgoing.header_frame, *outgoing.body_frames()]


def received(frames: Iterable[bytes], limits: Limits = LIMITS) -> Parts:
    """What a link makes of these frames: one whole message, or ChannelError."""
    incoming: Incoming | None = None
    for data in frames:
        frame = read_frame(data)
        if isinstance(frame, memoryview):
            if incoming is None:
                raise ChannelError("a chunk before a header", "")
            incoming.add(frame)
        elif frame.WhichOneof("kind") == "header":
            if incoming is not None:
                raise ChannelError("two headers", "")
            incoming = Incoming(frame.header, limits)
        elif frame.WhichOneof("kind") == "end" and incoming is not None:
            return incoming.finish(frame.end)
        else:
            raise ChannelError("a frame of another kind", "")
    raise ChannelError("no end", "")


def header_of(records: bytes = b"", payload: int = 0, **fields: object) -> pb.Header:
    """A header that passes, but for what is given."""
    passing = {"message_id": MESSAGE_ID, "run_id": "run-1", "type": "train", "created_at": 1.0, "ttl": 60.0}
    return pb.Header(**(passing | {"records_bytes": len(records), "payload_bytes": payload} | fields))
