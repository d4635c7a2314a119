"""One stream of a node, while it lasts: hello and welcome, then requests in and answers out.

An answer above INLINE_BYTES is announced, and its body waits for a Grant; it may be dropped instead. One message is on
its way at a time, so answers arrive in the order in which they are sent.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from flwr.app import Error, Message

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel import words
from ..privacy.channel.flower import SERVER_NODE_ID, run_number
from ..privacy.channel.frames import Incoming, Outgoing, encode, read_frame, to_message
from ..privacy.channel.member import Member
from ..privacy.errors import ChannelError

log = logging.getLogger("privet.node")

PROTOCOL = 1
_WELCOME_SECONDS = 30.0
_RENEWED_AGAIN_SECONDS = 60.0  # after a renewal that failed
_CONNECT = "/privet.v1.Nodes/Connect"


class Desk(Protocol):
    """Where requests go and answers lie, whatever the stream: see link.py."""

    def hello(self) -> pb.Hello:
        """Who we are."""
        ...

    def unsent(self) -> list[bytes]:
        """The asks whose answers were not taken yet, oldest first."""
        ...

    async def ready(self, ask_id: bytes) -> tuple[str, Message] | None:
        """Run and answer of an ask, as it may be sent now."""
        ...

    def take(self, ask_id: bytes, run_id: str, message: Message) -> None:
        """A request has come."""
        ...

    def taken(self, ask_id: bytes) -> None:
        """The server has this answer."""
        ...

    def dropped(self, ask_id: bytes) -> None:
        """Nobody waits for this answer."""
        ...

    def packs(self, run_id: str) -> bool:
        """Whether updates of this run are sent as their upper halves, where nothing is lost by it."""
        ...


class Welcomed(Protocol):
    """Who is told what the server says of ledger and keys, and how the connection stands."""

    def welcomed(self, countersigned: str) -> None:
        """The newest head of our ledger that the server holds. In a thread."""
        ...

    def deny(self, keys: frozenset[str]) -> None:
        """These keys were revoked."""
        ...

    def told(self, state: str, why: str = "") -> None:
        """How the connection stands, for people to see."""
        ...


@dataclass(frozen=True, slots=True)
class _AnswerTo:
    """Stands in the queue for an answer, which is made ready when its turn comes."""

    ask_id: bytes


class Session:
    """One stream, while it lasts."""

    def __init__(self, desk: Desk, party: Welcomed, member: Member, channel: grpc.aio.Channel) -> None:
        self._desk = desk
        self._party = party
        self._member = member
        self._call: Any = channel.stream_stream(_CONNECT)(wait_for_ready=False)
        self._out: asyncio.Queue[bytes | _AnswerTo] = asyncio.Queue()
        self._granted: dict[bytes, asyncio.Future[bool]] = {}
        self._node_id = 0
        self._incoming: Incoming | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.is_welcome = False

    def send(self, frame: pb.Frame) -> None:
        """Put a frame in the queue."""
        self._out.put_nowait(frame.SerializeToString())

    def send_answer(self, ask_id: bytes) -> None:
        """Put the answer to an ask in the queue."""
        self._out.put_nowait(_AnswerTo(ask_id))

    def close(self) -> None:
        """End it."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()

    async def serve(self, freshen: Callable[[Member], None]) -> None:
        """Greet, then read and write until the stream ends or its certificate is to be renewed."""
        await self._call.write(pb.Frame(hello=self._desk.hello()).SerializeToString())
        await self._welcome()
        for ask_id in self._desk.unsent():
            self.send_answer(ask_id)
        self._tasks = [asyncio.create_task(work) for work in (self._read(), self._write(), self._renew(freshen))]
        try:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._call.cancel()
        for task in self._tasks:  # in this order: what the server said comes before what could not be written then
            if task in done and not task.cancelled():
                task.result()

    async def _welcome(self) -> None:
        try:
            frame = await asyncio.wait_for(self._next(), _WELCOME_SECONDS)
        except TimeoutError:
            raise ChannelError(
                f"{self._member.address} says nothing", "see that a privet server listens there"
            ) from None
        if frame is None:
            await self._raise_status()
        if not isinstance(frame, pb.Frame) or frame.WhichOneof("kind") != "welcome":
            raise ChannelError(f"{self._member.address} does not speak as a privet server", "check the address")
        if frame.welcome.protocol != PROTOCOL:
            raise ChannelError(
                f"the server speaks protocol {frame.welcome.protocol} (privet {frame.welcome.version!r:.40}), "
                f"this node {PROTOCOL}",
                "install the same version of privet at both ends",
            )
        self._node_id = frame.welcome.node_id
        await asyncio.to_thread(self._party.welcomed, frame.welcome.countersigned)
        self._party.deny(frozenset(frame.welcome.denied.key_fingerprints))
        self.is_welcome = True
        self._party.told("connected")
        log.info("connected to %s as node %d", self._member.address, self._node_id)

    async def _raise_status(self) -> None:
        code, details = await self._call.code(), await self._call.details()
        raise grpc.aio.AioRpcError(code, None, None, details)

    async def _next(self) -> "pb.Frame | memoryview | None":
        data = await self._call.read()
        return None if data is grpc.aio.EOF else read_frame(data)

    # ---- from the server ----

    async def _read(self) -> None:
        while True:
            frame = await self._next()
            if frame is None:
                await self._raise_status()
            elif not isinstance(frame, pb.Frame):
                if self._incoming is None:
                    raise ChannelError("the server sent a chunk outside of a message", "update the server")
                self._incoming.add(frame)
            else:
                await self._take(frame)

    async def _take(self, frame: pb.Frame) -> None:
        match frame.WhichOneof("kind"):
            case "header" if self._incoming is None:
                self._incoming = Incoming(frame.header)
            case "end" if self._incoming is not None:
                self._finish(self._incoming, frame.end)
            case "grant":
                self._decide(frame.grant.message_id, True)
            case "taken":
                self._desk.taken(frame.taken.message_id)
                await asyncio.to_thread(self._party.welcomed, frame.taken.countersigned)
            case "dropped":
                self._desk.dropped(frame.dropped.message_id)
                self._decide(frame.dropped.message_id, False)
            case "denied":
                self._party.deny(frozenset(frame.denied.key_fingerprints))
            case kind:
                raise ChannelError(f"the server sent a frame of kind {kind}, which does not belong here", "update it")

    def _finish(self, incoming: Incoming, end: pb.End) -> None:
        self._incoming = None
        parts = incoming.finish(end)
        run_id = parts.header.run_id
        message = to_message(parts, run_id=run_number(run_id), src_node_id=SERVER_NODE_ID, dst_node_id=self._node_id)
        self._desk.take(parts.header.message_id, run_id, message)

    # ---- to the server ----

    async def _write(self) -> None:
        while True:
            item = await self._out.get()
            if isinstance(item, _AnswerTo):
                await self._answer(item.ask_id)
            else:
                await self._call.write(item)

    async def _answer(self, ask_id: bytes) -> None:
        ready = await self._desk.ready(ask_id)
        if ready is None:
            return
        run_id, message = ready
        message_id = os.urandom(16)
        outgoing = self._encoded(message, message_id, ask_id, run_id)
        decision = self._granted[message_id] = self._granted[ask_id] = asyncio.get_running_loop().create_future()
        try:
            await self._call.write(outgoing.header_frame)
            if outgoing.is_inline or await decision:
                for frame in outgoing.body_frames():
                    await self._call.write(frame)
        finally:
            del self._granted[message_id], self._granted[ask_id]

    def _encoded(self, message: Message, message_id: bytes, ask_id: bytes, run_id: str) -> Outgoing:
        """The answer as frames; one that the channel does not carry becomes a failure, or it would block all others."""
        try:
            packs = self._desk.packs(run_id)
            return encode(message, message_id=message_id, reply_to=ask_id, run_id=run_id, pack=packs)
        except ChannelError as error:
            log.error("run %s: an answer that cannot be sent: %s; try: %s", run_id, error.message, error.remedy)
            failed = Message(Error(words.APP_RAISED, words.APP_FAILED), reply_to=message)
            return encode(failed, message_id=message_id, reply_to=ask_id, run_id=run_id)

    def _decide(self, message_id: bytes, is_granted: bool) -> None:
        decision = self._granted.get(message_id)
        if decision is not None and not decision.done():
            decision.set_result(is_granted)

    async def _renew(self, freshen: Callable[[Member], None]) -> None:
        """Renew the certificate at two thirds of its life, and end: the next stream has the new one."""
        while True:
            await asyncio.sleep(max(0.0, self._member.renewal_due().timestamp() - time.time()))
            before = self._member.certificate.serial
            try:
                await asyncio.to_thread(freshen, self._member)
            except ChannelError as error:
                log.error("the certificate could not be renewed: %s; try: %s", error.message, error.remedy)
            if self._member.certificate.serial != before:
                return
            await asyncio.sleep(_RENEWED_AGAIN_SECONDS)
