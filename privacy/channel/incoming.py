"""A message that is coming in: its header, then chunk by chunk its records and its arrays, then its digest.

Nothing is believed: a length is held against what was announced, and that against the limits, before memory is given;
records are checked before an array is taken. Whatever the bytes, the only error is ChannelError, and nothing is
handed out before the digest has been compared. An error ends a message for good.
"""

import hashlib
import hmac
import io
import math
from collections import deque
from dataclasses import dataclass

from flwr.app import Error, Message, Metadata, RecordDict

from ..errors import ChannelError
from . import privet_pb2 as pb
from .limits import CHUNK_BYTES, LIMITS, MESSAGE_ID_BYTES, Limits
from .memory import zeros
from .packing import unpacked
from .records import check_text, from_proto, parse
from .wire import malformed

_TOO_LARGE = "send a smaller model"


@dataclass(frozen=True, slots=True)
class Parts:
    """What came: the header, and the content or the error."""

    header: pb.Header
    content: RecordDict | None
    error: Error | None


class Incoming:
    """Puts one message together. Raises ChannelError at birth for a header that announces too much."""

    def __init__(self, header: pb.Header, limits: Limits = LIMITS) -> None:
        check_header(header, limits)
        self.header = header
        self._limits = limits
        self._records_left = header.records_bytes
        self._payload_left = header.payload_bytes
        self._records = bytearray()
        self._parsed = pb.Records()
        self._heads: deque[pb.ArrayHead] = deque()
        self._array = io.BytesIO()
        self._array_left = 0
        self._arrays: list[bytes] = []
        self._records_hash, self._payload_hash = hashlib.sha256(), hashlib.sha256()
        self._is_over = False
        if not self._records_left and self._payload_left:
            raise malformed(f"a payload of {self._payload_left} bytes without records")

    @property
    def is_complete(self) -> bool:
        """Whether every announced byte is there and only End may follow."""
        return not self._records_left and not self._payload_left

    def add(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk. Nothing of it is held: its bytes are copied to where they belong."""
        try:
            self._add(memoryview(chunk))
        except ChannelError:
            self._end()
            raise

    def finish(self, end: pb.End) -> Parts:
        """The message, once. Raises ChannelError where bytes are missing or the digest is another."""
        try:
            return self._finished(end)
        finally:
            self._end()

    def _add(self, chunk: memoryview) -> None:
        left = self._records_left or self._payload_left
        if self._is_over or len(chunk) != min(left, CHUNK_BYTES) or not left:
            raise malformed(f"a chunk of {len(chunk)} bytes where {min(left, CHUNK_BYTES)} were due")
        if self._records_left:
            self._add_records(chunk)
        else:
            self._add_payload(chunk)

    def _add_records(self, chunk: memoryview) -> None:
        self._records_hash.update(chunk)
        self._records += chunk
        self._records_left -= len(chunk)
        if not self._records_left:
            self._open_records()

    def _open_records(self) -> None:
        self._parsed, heads = parse(bytes(self._records), self._limits)
        self._records.clear()
        announced = sum(head.bytes for head in heads)
        if announced != self.header.payload_bytes:
            raise malformed(f"arrays of {announced} bytes in a payload of {self.header.payload_bytes}")
        if sum(head.bytes << head.is_bfloat16 for head in heads) > self._limits.payload_bytes:
            raise malformed(f"arrays that unpack to more than {self._limits.payload_bytes} bytes")
        self._heads.extend(heads)
        self._open_array()
        self._close_arrays()

    def _add_payload(self, chunk: memoryview) -> None:
        self._payload_hash.update(chunk)
        self._payload_left -= len(chunk)
        while len(chunk):
            written = self._array.write(chunk[: self._array_left])
            self._array_left -= written
            chunk = chunk[written:]
            self._close_arrays()

    def _close_arrays(self) -> None:
        """Hand on the array that is whole, and the empty ones behind it; make room for the next."""
        while self._heads and not self._array_left:
            data, head = self._array.getvalue(), self._heads.popleft()
            self._arrays.append(unpacked(data) if head.is_bfloat16 else data)
            self._open_array()

    def _open_array(self) -> None:
        self._array_left = self._heads[0].bytes if self._heads else 0
        try:
            self._array = io.BytesIO(zeros(self._array_left))  # written in place: the only copy
        except MemoryError:
            raise ChannelError(f"no memory for an array of {self._array_left} bytes", _TOO_LARGE) from None

    def _finished(self, end: pb.End) -> Parts:
        if self._is_over or not self.is_complete:
            raise malformed(f"an end where {self._records_left + self._payload_left} bytes are missing")
        if not hmac.compare_digest(
            end.sha256, total_digest(self.header, self._records_hash.digest(), self._payload_hash.digest())
        ):
            raise ChannelError("a message whose SHA-256 is another than announced", "send it again")
        if self.header.HasField("failure"):
            failure = self.header.failure
            return Parts(self.header, None, Error(failure.code, failure.reason or None))
        return Parts(self.header, from_proto(self._parsed, self._arrays), None)

    def _end(self) -> None:
        self._is_over = True
        self._records.clear()
        self._array = io.BytesIO()
        self._heads.clear()
        self._arrays = []
        self._parsed = pb.Records()


def check_header(header: pb.Header, limits: Limits) -> None:
    """Raise ChannelError for a header that Flower could not hold, or that announces more than the limits."""
    if len(header.message_id) != MESSAGE_ID_BYTES or len(header.reply_to) not in (0, MESSAGE_ID_BYTES):
        raise malformed(f"an id that has not {MESSAGE_ID_BYTES} bytes")
    check_text(header.run_id, "run id", limits.name_characters)
    check_text(header.group_id, "group id", limits.name_characters)
    check_text(header.type, "message type", limits.name_characters)
    if not math.isfinite(header.created_at) or not math.isfinite(header.ttl):
        raise malformed("a time that is no number")
    if header.records_bytes > limits.records_bytes or header.payload_bytes > limits.payload_bytes:
        raise ChannelError(
            f"a message of {header.records_bytes} and {header.payload_bytes} bytes was announced, allowed are "
            f"{limits.records_bytes} and {limits.payload_bytes}",
            _TOO_LARGE,
        )
    if header.HasField("failure") and (header.records_bytes or header.payload_bytes):
        raise malformed("a failure with a body")
    if len(header.failure.reason.encode()) > limits.reason_bytes:
        raise malformed(f"a reason above {limits.reason_bytes} bytes")
    _metadata(header, 0, 0, 0, None)


def total_digest(header: pb.Header, records: bytes, payload: bytes) -> bytes:
    """What End holds: SHA-256 over the SHA-256 of the header, of the records and of the payload."""
    opening = hashlib.sha256(header.SerializeToString(deterministic=True)).digest()
    return hashlib.sha256(opening + records + payload).digest()


def to_message(
    parts: Parts, *, run_id: int, src_node_id: int, dst_node_id: int, reply_to: Metadata | None = None
) -> Message:
    """A Flower Message. Who sent it is what the caller knows; of a reply, its request says what it answers."""
    metadata = _metadata(parts.header, run_id, src_node_id, dst_node_id, reply_to)
    body = {"content": parts.content} if parts.error is None else {"error": parts.error}
    message: Message = Message(**body, metadata=metadata)  # type: ignore[call-overload]  # as Flower's own grids do
    return message


def _metadata(header: pb.Header, run_id: int, source: int, destination: int, reply_to: Metadata | None) -> Metadata:
    try:
        return Metadata(
            run_id=run_id,
            message_id=header.message_id.hex(),
            src_node_id=source,
            dst_node_id=destination,
            reply_to_message_id=reply_to.message_id if reply_to else header.reply_to.hex(),
            group_id=reply_to.group_id if reply_to else header.group_id,
            created_at=header.created_at,
            ttl=header.ttl,
            message_type=reply_to.message_type if reply_to else header.type,
        )
    except ValueError:
        raise malformed(f"a message of type {header.type!r}, which Flower does not know") from None
