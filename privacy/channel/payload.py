"""The arrays' bytes of a message, cut into frames once, however many nodes receive them.

A message's records say how many bytes each array has; the pieces of 1 MiB do not respect these bounds. Every piece
is full but the last one, so that their number follows from the announced size.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from .limits import CHUNK_BYTES
from .packing import packed
from .wire import malformed

Buffer = bytes | bytearray | memoryview

# `bytes chunk = 5` of Frame.
CHUNK_TAG = b"\x2a"
# The model of this round and of the next; an evicted payload lives on while it is being sent.
_PAYLOADS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """How one array travels."""

    size: int
    is_bfloat16: bool


class Payload:
    """The bytes of arrays as they travel. Frames are made when they are first asked for, and kept if `keep`."""

    def __init__(self, arrays: Sequence[Buffer], *, pack: bool = False, keep: bool = True) -> None:
        self._views: list[memoryview] = []
        self.pieces = tuple(self._added(array, pack) for array in arrays)
        self.size = sum(piece.size for piece in self.pieces)
        self._keep = keep
        self._frames: list[bytes] = []
        self._digest: bytes | None = None
        self._unframed = self._cut()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, arrays: Sequence[Buffer], *, pack: bool = False, keep: bool = True) -> "Payload":
        """The payload of these arrays, in this order."""
        return cls(arrays, pack=pack, keep=keep)

    @property
    def digest(self) -> bytes:
        """SHA-256 of all bytes: at hand once the frames were made, computed now where they were not."""
        if self._digest is None:
            for _ in self.frames():
                pass
        if self._digest is None:
            raise RuntimeError("frames that end give a digest")
        return self._digest

    def frames(self) -> Iterator[bytes]:
        """Serialized frames of chunks, in order. Safe to be read by several threads at once."""
        return self._kept_frames() if self._keep else self._cut()

    def _kept_frames(self) -> Iterator[bytes]:
        index = 0
        while True:
            if index == len(self._frames):
                with self._lock:
                    if index == len(self._frames):
                        frame = next(self._unframed, None)
                        if frame is None:
                            return
                        self._frames.append(frame)
            yield self._frames[index]
            index += 1

    def _cut(self) -> Iterator[bytes]:
        running = hashlib.sha256()
        for pieces in _cut(self._views):
            frame = chunk_frame(pieces)
            running.update(memoryview(frame)[len(frame) - sum(map(len, pieces)) :])
            yield frame
        self._digest = running.digest()

    def _added(self, array: Buffer, pack: bool) -> Piece:
        try:
            view = memoryview(array).cast("B")
        except TypeError:
            raise malformed(f"an array's data is {type(array).__name__}, not bytes") from None
        halves = packed(bytes(array)) if pack else None
        views = halves or (view,)
        self._views += views
        return Piece(sum(map(len, views)), halves is not None)


class PayloadMemory:
    """The payloads of the messages that are being sent: those that hold the same arrays share one."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int | bool, ...], tuple[list[Buffer], Payload]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, message: Message, *, pack: bool = False) -> Payload:
        """The payload of a message. The same data objects in the same order give the same payload."""
        arrays = arrays_of(message)
        key = (pack, *(id(array) for array in arrays))
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._kept[key] = (arrays, Payload.of(arrays, pack=pack))  # held, so that no id is used anew
            self._kept.move_to_end(key)
            while len(self._kept) > _PAYLOADS_KEPT:
                self._kept.popitem(last=False)
            return found[1]

    def forget(self) -> None:
        """Let go of everything: a round is over."""
        with self._lock:
            self._kept.clear()


def arrays_of(message: Message) -> list[Buffer]:
    """The data of a message's arrays, in the order in which its records name them."""
    if not message.has_content():
        return []
    records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return [array.data for record in records for array in record.values()]


def chunk_frame(pieces: Sequence[Buffer]) -> bytes:
    """A serialized Frame that holds the pieces as one chunk, each byte copied once."""
    return b"".join((CHUNK_TAG, _varint(sum(map(len, pieces))), *pieces))


def _cut(views: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """The views as runs of CHUNK_BYTES; the last one is shorter."""
    run: list[memoryview] = []
    space = CHUNK_BYTES
    for view in views:
        start = 0
        while start < len(view):
            piece = view[start : start + space]
            run.append(piece)
            start += len(piece)
            space -= len(piece)
            if space == 0:
                yield run
                run, space = [], CHUNK_BYTES
    if run:
        yield run


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
