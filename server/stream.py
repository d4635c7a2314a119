"""One node's stream at the server, from Hello to its end.

The rules:
1. The first frame is a Hello, soon; its protocol is ours and its clock is near ours.
2. At most one message is open at a time, each way. A large answer's body comes only after a Grant.
3. An answer must name an ask that waits for this node, in this run; any other is logged and dropped, never delivered.
4. The head of the ledger that comes with an answer is countersigned before the answer is handed on, and answers are
   taken in the order in which they come. An answer that contradicts what was witnessed is none.
5. A body that was granted keeps coming; a stream that stalls is ended. What nobody waits for any more holds no room.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc.aio
from flwr.app import Error, Message

from .. import __version__
from ..privacy.budget.witness import head_text
from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel import words
from ..privacy.channel.credentials import Peer
from ..privacy.channel.frames import INLINE_BYTES, Incoming, read_frame, to_message
from ..privacy.errors import ChannelError
from .asks import Arrived, Ask
from .hello import PROTOCOL, check_hello, check_presence

if TYPE_CHECKING:
    from .link import Hub

log = logging.getLogger("privet.server")

_HELLO_SECONDS = 20.0
_SLOWEST = 64 * 2**10  # bytes a second of a body that was granted; a slower line holds up everybody
_MOST_QUEUED = 10_000  # frames and asks on their way to one node


@dataclass(frozen=True, slots=True)
class NodeView:
    """A connected node, as others may see it. `tasks`: versions by name. `since`: Unix seconds.

    `revision`: another whenever what it refused may be permitted now.
    """

    name: str
    node_id: int
    address: str
    version: str
    python: str
    since: float
    is_paused: bool
    tasks: Mapping[str, str]
    apps: tuple[str, ...]
    certificate_expires: datetime
    key_fingerprint: str
    answered: int
    last_answer: float | None
    last_run: str
    revision: str = ""


class NodeStream:
    """Reads and writes one stream. `instance`: of the process that opened it."""

    def __init__(self, hub: "Hub", context: "grpc.aio.ServicerContext[Any, Any]", peer: Peer, node_id: int) -> None:
        self.peer = peer
        self.name = peer.identity.name
        self.node_id = node_id
        self.address = str(context.peer())
        self.instance = b""
        self.status = grpc.StatusCode.INVALID_ARGUMENT
        self._hub = hub
        self._context = context
        self._out: asyncio.Queue[bytes | _Turn] = asyncio.Queue(_MOST_QUEUED)
        self._hello = pb.Hello()
        self._since = 0.0
        self._answered, self._last_run = 0, ""
        self._last_answer: float | None = None
        self._open: _Body | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._end_reason = ""

    def view(self) -> NodeView:
        """What others may see of it."""
        presence = self._hello.presence
        return NodeView(
            name=self.name,
            node_id=self.node_id,
            address=self.address,
            version=self._hello.version,
            python=self._hello.python,
            since=self._since,
            is_paused=presence.is_paused,
            tasks={task.name: task.version for task in presence.tasks},
            apps=tuple(presence.apps),
            certificate_expires=self.peer.not_after,
            key_fingerprint=self.peer.key_fingerprint,
            answered=self._answered,
            last_answer=self._last_answer,
            last_run=self._last_run,
            revision=presence.revision,
        )

    def send(self, item: "Ask | pb.Frame") -> None:
        """Put it in the queue to the node; a node that lets the queue overflow loses its stream."""
        try:
            self._out.put_nowait(_Turn(item.id) if isinstance(item, Ask) else item.SerializeToString())
        except asyncio.QueueFull:
            self.end("it does not read what it is sent", grpc.StatusCode.RESOURCE_EXHAUSTED)

    def drop(self, ask_id: bytes) -> None:
        """Nobody waits for this answer any more: what of it is here, or on its way, is let go."""
        body = self._open
        if body is not None and body.ask is not None and body.ask.id == ask_id:
            if body.may_come:
                body.abandon()
            else:
                body.let_go()
                self._open = None
        self.tell_dropped(ask_id)

    def tell_dropped(self, ask_id: bytes) -> None:
        """The node need not send this answer, or keep it."""
        self.send(pb.Frame(dropped=pb.Dropped(message_id=ask_id)))

    def tell_denied(self, keys: frozenset[str]) -> None:
        """These keys were revoked."""
        self.send(pb.Frame(denied=pb.Denied(key_fingerprints=sorted(keys))))

    def end(self, reason: str, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the stream from outside."""
        self.status = status
        self._end_reason = self._end_reason or reason
        for task in self._tasks:
            task.cancel()

    async def serve(self) -> None:
        """Carry the stream to its end; raise ChannelError where the node, or somebody else, ended it with a reason."""
        await self._greet()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._wind_up()
        if self._end_reason:
            raise ChannelError(self._end_reason, "connect again when that is mended")
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or ChannelError("", "")

    async def quiet(self) -> None:
        """Wait until the last frame is written, or the peer is gone: gRPC cannot end a call during its first write."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _wind_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._open is not None:
            self._open.let_go()
            self._open = None

    # ---- hello ----

    async def _greet(self) -> None:
        try:
            frame = await asyncio.wait_for(self._next(), _HELLO_SECONDS)
        except TimeoutError:
            raise ChannelError(f"{self.name} opened a stream and said nothing", "update the node") from None
        if not isinstance(frame, pb.Frame) or frame.WhichOneof("kind") != "hello":
            raise ChannelError(f"{self.name} began with something else than a hello", "update the node")
        check_hello(frame.hello, self.name, self._hub.clock())
        self._hello, self.instance, self._since = frame.hello, frame.hello.instance, self._hub.clock()
        self.send(pb.Frame(welcome=await self._welcome()))
        self._hub.enter(self)

    async def _welcome(self) -> pb.Welcome:
        witnesses = self._hub.witnesses  # a node's first time reads a file
        newest = await asyncio.to_thread(witnesses.newest, self.name) if witnesses else None
        return pb.Welcome(
            protocol=PROTOCOL,
            version=__version__,
            clock=self._hub.clock(),
            node_id=self.node_id,
            countersigned=head_text(newest) if newest else "",
            denied=pb.Denied(key_fingerprints=sorted(self._hub.denied)),
        )

    # ---- to the node ----

    async def _write(self) -> None:
        while True:
            item = await self._out.get()
            if isinstance(item, bytes):
                await self._put(item)
            elif (ask := self._hub.waiting(item.ask_id)) is not None:
                await self._ask(ask)
                del ask  # with it its model, before the next turn is waited for

    async def _ask(self, ask: Ask) -> None:
        if ask.outgoing.size <= INLINE_BYTES:
            await self._write_message(ask)
            return
        async with self._hub.sending():
            await self._write_message(ask)

    async def _write_message(self, ask: Ask) -> None:
        await self._put(ask.outgoing.header_frame)
        for frame in ask.outgoing.body_frames():
            await self._put(frame)
        ask.mailbox.traffic.sent += ask.outgoing.size

    async def _put(self, frame: bytes) -> None:
        self._writing = asyncio.ensure_future(self._context.write(frame))
        # Not wait_for: where a cancellation meets the end of what it waits for, Python 3.11 loses the cancellation.
        written, _ = await asyncio.wait([self._writing], timeout=self._hub.options.stall)
        if not written:
            self.end(f"it has read nothing for {self._hub.options.stall:g} s", grpc.StatusCode.RESOURCE_EXHAUSTED)
            raise ChannelError(f"{self.name} does not read what it is sent", "look at that node")
        self._writing.result()

    # ---- from the node ----

    async def _read(self) -> None:
        while True:
            frame = await self._next()
            if frame is None:
                return
            if not isinstance(frame, pb.Frame):
                self._take_chunk(frame)
                continue
            kind = frame.WhichOneof("kind")
            if kind == "header":
                self._begin(frame.header)
            elif kind == "end":
                await self._finish(frame.end)
            elif kind == "presence":
                check_presence(frame.presence, self.name)
                self._hello.presence.CopyFrom(frame.presence)
                self._hub.changed()
            else:
                raise ChannelError(f"{self.name} sent a frame of kind {kind}", "update the node")

    async def _next(self) -> "pb.Frame | memoryview | None":
        """The next frame; None at the end of the stream."""
        data = await self._context.read()
        return None if data is grpc.aio.EOF else read_frame(data)

    def _begin(self, header: pb.Header) -> None:
        if self._open is not None:
            raise ChannelError(f"{self.name} opened a message within a message", "update the node")
        ask = self._hub.asked(header.reply_to, self.node_id, header.run_id)
        size = header.records_bytes + header.payload_bytes
        if ask is None:
            log.info("node %s: an answer in run %.64r that nobody waits for", self.name, header.run_id)
            self._open = _Body(None, None, size) if size <= INLINE_BYTES else None  # a large body stays with the node
            self.tell_dropped(header.reply_to)
            return
        if header.payload_bytes > ask.largest_answer:
            raise ChannelError(
                f"{self.name} announces {header.payload_bytes} bytes of arrays, asked for are {ask.largest_answer}",
                "look at the task's version at that node",
            )
        self._open = _Body(ask, Incoming(header, self._hub.options.limits), size)
        if size > INLINE_BYTES:
            self._open.granting = asyncio.create_task(self._grant(self._open, header.message_id))

    async def _grant(self, body: "_Body", message_id: bytes) -> None:
        room = self._hub.room
        taken = await room.take(body.size)
        body.release = lambda: room.put_back(taken)
        body.is_granted = True
        self.send(pb.Frame(grant=pb.Grant(message_id=message_id)))
        await self._watch(body)

    async def _watch(self, body: "_Body") -> None:
        """End the stream when a body that was granted stops coming, or trickles: it holds room that others wait for."""
        left, stall, loop = -1, self._hub.options.stall, asyncio.get_running_loop()
        latest = loop.time() + stall + body.size / _SLOWEST
        while left != body.left and loop.time() < latest:
            left = body.left
            await asyncio.sleep(min(stall, max(latest - loop.time(), 0)))
        self.end(f"it was granted {body.size} bytes, and {body.left} have not come for too long")

    def _take_chunk(self, chunk: memoryview) -> None:
        body = self._open
        if body is None or not body.may_come:
            raise ChannelError(f"{self.name} sent a chunk that nobody granted", "update the node")
        body.left -= len(chunk)
        if body.left < 0:
            raise ChannelError(f"{self.name} sent more than it announced", "update the node")
        if body.incoming is not None:
            body.incoming.add(chunk)

    async def _finish(self, end: pb.End) -> None:
        body = self._open
        if body is None or not body.may_come:
            raise ChannelError(f"{self.name} ended a message that it had not begun", "update the node")
        self._open = None
        body.stop_watching()
        try:
            if body.ask is not None and body.incoming is not None:
                await self._deliver(body, body.ask, body.incoming, end)
        except BaseException:
            body.let_go()
            raise

    async def _deliver(self, body: "_Body", ask: Ask, incoming: Incoming, end: pb.End) -> None:
        asked = ask.request.metadata
        message = to_message(
            incoming.finish(end),
            run_id=asked.run_id,
            src_node_id=self.node_id,
            dst_node_id=asked.src_node_id,
            reply_to=asked,
        )
        ask.mailbox.traffic.received += body.size
        if not await self._is_witnessed(ask, message):
            message = Message(Error(words.CONTRADICTS, words.LEDGER_CONTRADICTS), reply_to=ask.request)
        self._answered += 1
        self._last_answer, self._last_run = self._hub.clock(), ask.run_id
        self._hub.note_answer(self)
        self._hub.answered(Arrived(ask, message, release=self._releasing(body)))
        self._tell_taken(ask)

    def _releasing(self, body: "_Body") -> "Any":
        """Puts the body's bytes back, once, from any thread."""
        release, body.release = body.release, None
        return (lambda: self._hub.let_go(release)) if release else (lambda: None)

    async def _is_witnessed(self, ask: Ask, message: Message) -> bool:
        """Countersign the head of the ledger that the answer brings; one that must bring it and does not, is none."""
        witnesses = self._hub.witnesses
        if witnesses is None or message.has_error() or not ask.is_charged:
            return True
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._hub.signing, witnesses.take, self.name, message)
        except OSError as error:  # the node keeps its answer, and sends it again
            self.status = grpc.StatusCode.UNAVAILABLE
            raise ChannelError(
                f"the witness of {self.name} cannot be written: {error.strerror}", "free space at the server"
            ) from None

    def _tell_taken(self, ask: Ask) -> None:
        newest = self._hub.witnesses.newest(self.name) if self._hub.witnesses else None
        told = head_text(newest) if newest else ""
        self.send(pb.Frame(taken=pb.Taken(message_id=ask.id, countersigned=told)))


@dataclass(frozen=True, slots=True)
class _Turn:
    """Stands in the queue for an ask, which may be over when its turn comes; so the queue holds no models."""

    ask_id: bytes


class _Body:
    """A message on its way in. Without an ask it is thrown away as it comes. `left`: bytes that have not come."""

    def __init__(self, ask: Ask | None, incoming: Incoming | None, size: int) -> None:
        self.ask = ask
        self.incoming = incoming
        self.size = self.left = size
        self.is_granted = False
        self.granting: asyncio.Task[None] | None = None
        self.release: Any = None

    @property
    def may_come(self) -> bool:
        """Whether its bytes may come now."""
        return self.granting is None or self.is_granted

    def let_go(self) -> None:
        """It will not be finished: give back what it holds."""
        self.stop_watching()
        self.abandon()

    def stop_watching(self) -> None:
        """It is whole, or will never be."""
        if self.granting is not None:
            self.granting.cancel()

    def abandon(self) -> None:
        """Nobody waits for it: what still comes is thrown away."""
        self.ask = self.incoming = None
        if self.release is not None:
            self.release()
            self.release = None
