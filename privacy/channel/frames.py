"""Flower's Message <-> frames of privet.proto: Header, the records, the arrays' bytes, End.

    Header   ids, run, type, and how many bytes follow; the body waits for a Grant when it is above INLINE_BYTES
    chunk …  the records, then the payload, each in pieces of 1 MiB of which only the last one may be shorter
    End      SHA-256 over the three digests

A message with an error is a Header and an End. limits.py says how large anything may be, incoming.py puts a message
together again.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message
from google.protobuf.message import DecodeError

from ..errors import ChannelError
from . import privet_pb2 as pb
from .incoming import Incoming, Parts, check_header, to_message, total_digest
from .limits import CHUNK_BYTES, FRAME_BYTES, GRPC_OPTIONS, INLINE_BYTES, LIMITS, Limits
from .payload import CHUNK_TAG, Payload, PayloadMemory, arrays_of, chunk_frame
from .records import serialize
from .wire import malformed, read_varint

__all__ = [
    "CHUNK_BYTES",
    "FRAME_BYTES",
    "GRPC_OPTIONS",
    "INLINE_BYTES",
    "LIMITS",
    "Incoming",
    "Limits",
    "Outgoing",
    "Parts",
    "Payload",
    "PayloadMemory",
    "encode",
    "read_frame",
    "to_message",
]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is ready to be sent: `header_frame`, then what `body_frames` gives."""

    header: pb.Header
    header_frame: bytes
    records: bytes
    payload: Payload

    @property
    def size(self) -> int:
        """Bytes of the body, without frames."""
        return len(self.records) + self.payload.size

    @property
    def is_inline(self) -> bool:
        """Whether the body follows at once, without a Grant."""
        return self.size <= INLINE_BYTES

    def body_frames(self) -> Iterator[bytes]:
        """Everything after the header, End included. Making a frame may take a millisecond: it is hashed here."""
        for start in range(0, len(self.records), CHUNK_BYTES):
            yield chunk_frame([memoryview(self.records)[start : start + CHUNK_BYTES]])
        yield from self.payload.frames()
        digest = total_digest(self.header, hashlib.sha256(self.records).digest(), self.payload.digest)
        yield pb.Frame(end=pb.End(sha256=digest)).SerializeToString()


def encode(
    message: Message,
    *,
    message_id: bytes,
    reply_to: bytes = b"",
    run_id: str,
    payloads: PayloadMemory | None = None,
    pack: bool = False,
    limits: Limits = LIMITS,
) -> Outgoing:
    """A message as frames. With `payloads` its arrays are framed once for all messages that hold them.

    Raises ChannelError for what the channel does not carry: an integer above 64 bits, a name that cannot be printed,
    more than the limits.
    """
    payload = payloads.of(message, pack=pack) if payloads else Payload.of(arrays_of(message), pack=pack, keep=False)
    records = serialize(message.content, payload.pieces, limits) if message.has_content() else b""
    header = _header(message, message_id, reply_to, run_id, limits)
    header.payload_bytes = payload.size
    header.records_bytes = min(len(records), limits.records_bytes + 1)  # a field of 32 bits
    check_header(header, limits)
    return Outgoing(header, pb.Frame(header=header).SerializeToString(), records, payload)


def read_frame(data: bytes) -> pb.Frame | memoryview:
    """A chunk as a view of its bytes, or the frame of any other kind. Raises ChannelError for anything else."""
    if len(data) > FRAME_BYTES:
        raise ChannelError(f"a frame of {len(data)} bytes, allowed are {FRAME_BYTES}", "see whose peer this is")
    if data[:1] == CHUNK_TAG:
        length, start = read_varint(data, 1, len(data))
        if length != len(data) - start:
            raise malformed("a chunk with something behind it")
        return memoryview(data)[start:]
    try:
        frame = pb.Frame.FromString(data)
    except DecodeError:
        raise malformed("a frame that is no protobuf") from None
    if frame.WhichOneof("kind") in (None, "chunk"):
        raise malformed("a frame of no known kind")
    return frame


def _header(message: Message, message_id: bytes, reply_to: bytes, run_id: str, limits: Limits) -> pb.Header:
    metadata = message.metadata
    try:
        header = pb.Header(
            message_id=message_id,
            reply_to=reply_to,
            run_id=run_id,
            type=metadata.message_type,
            group_id=metadata.group_id,
            created_at=metadata.created_at,
            ttl=metadata.ttl,
        )
        if message.has_error():
            reason = (message.error.reason or "").encode("utf-8", "replace")[: limits.reason_bytes]
            header.failure.code = message.error.code
            header.failure.reason = reason.decode("utf-8", "ignore")
    except (TypeError, ValueError):
        raise malformed("metadata that cannot be sent") from None
    return header
