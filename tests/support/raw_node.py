"""A node that says on its stream whatever a test wants, over real mutual TLS."""

import asyncio
import os
import time
from typing import Any

import grpc.aio
from channel import Loop, Server
from flwr.app import Message, RecordDict
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.credentials import channel_credentials
from privet.privacy.channel.frames import GRPC_OPTIONS, Incoming, Outgoing, encode, read_frame, to_message
from privet.privacy.channel.member import Member

LONG = 20.0


class EndedError(Exception):
    """The server has ended the stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class RawNode:
    """One stream, opened at once; `hello` for what an honest node says first."""

    def __init__(self, server: Server, member: Member, loop: Loop) -> None:
        self._loop = loop
        self.server = server
        self.name = member.identity.name
        self.instance = os.urandom(16)
        self.key_fingerprint = member.key.fingerprint
        self._loop.run(self._open(server.address, member))
        self.node_id = server.roll.node_id(self.name)

    async def _open(self, address: str, member: Member) -> None:
        self._channel = grpc.aio.secure_channel(address, channel_credentials(member), options=list(GRPC_OPTIONS))
        self._call: Any = self._channel.stream_stream("/privet.v1.Nodes/Connect")()
        self._frames: asyncio.Queue[pb.Frame | memoryview | EndedError] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read_on())

    def send(self, frame: pb.Frame | bytes) -> None:
        """A frame, or bytes that are none. What cannot be written because the stream has ended is not."""
        self._loop.run(self._write(frame if isinstance(frame, bytes) else frame.SerializeToString()), LONG)

    async def _write(self, frame: bytes) -> None:
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    def read(self, timeout: float = LONG) -> pb.Frame | memoryview:
        """The next frame; raises EndedError where the server has ended the stream, TimeoutError where nothing comes."""
        frame = self._loop.run(self._next(timeout))
        if isinstance(frame, EndedError):
            raise frame
        return frame  # type: ignore[no-any-return]

    async def _next(self, timeout: float) -> pb.Frame | memoryview | EndedError:
        return await asyncio.wait_for(self._frames.get(), timeout)

    async def _read_on(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._frames.put_nowait(read_frame(data))
        except grpc.aio.AioRpcError:
            pass
        self._frames.put_nowait(EndedError(await self._call.code(), await self._call.details() or ""))

    def hello(self, **changes: Any) -> "RawNode":
        """Say who we are; the welcome is left to be read."""
        said = {"protocol": 1, "version": "0", "instance": self.instance, "clock": time.time(), "python": "3"} | changes
        self.send(pb.Frame(hello=pb.Hello(**said)))
        return self

    def welcomed(self, **changes: Any) -> "RawNode":
        """The same, and read the welcome."""
        self.hello(**changes)
        self.expect("welcome")
        return self

    def expect(self, kind: str, timeout: float = LONG) -> Any:
        """The next frame of this kind; what the server says of the deny-list is passed over."""
        while True:
            frame = self.read(timeout)
            assert isinstance(frame, pb.Frame), "a chunk"
            found = frame.WhichOneof("kind")
            if found == kind:
                return getattr(frame, kind)
            assert found == "denied", f"{found} in place of {kind}"

    def expect_denied(self) -> set[str]:
        """The keys of the next frame that says which were revoked, if it says any."""
        while True:
            frame = self.read()
            if isinstance(frame, pb.Frame) and frame.WhichOneof("kind") == "denied" and frame.denied.key_fingerprints:
                return set(frame.denied.key_fingerprints)

    def asked(self) -> tuple[pb.Header, Message]:
        """The next request, whole."""
        header = self.expect("header")
        incoming = Incoming(header)
        while isinstance(frame := self.read(), memoryview):
            incoming.add(frame)
        return header, to_message(incoming.finish(frame.end), run_id=1, src_node_id=1, dst_node_id=self.node_id)

    def answer_to(self, header: pb.Header, content: RecordDict, **changes: Any) -> Outgoing:
        """An answer to a request, not sent yet."""
        said = {"message_id": os.urandom(16), "reply_to": header.message_id, "run_id": header.run_id} | changes
        return encode(Message(content, 1, "train"), **said)

    def answer(self, header: pb.Header, content: RecordDict) -> Outgoing:
        """Send an answer as an honest node does."""
        outgoing = self.answer_to(header, content)
        self.send(outgoing.header_frame)
        if not outgoing.is_inline:
            assert self.expect("grant").message_id == outgoing.header.message_id
        self.send_body(outgoing)
        return outgoing

    def send_body(self, outgoing: Outgoing) -> None:
        """What follows the header."""
        for frame in outgoing.body_frames():
            self.send(frame)

    def ended(self, timeout: float = LONG) -> EndedError:
        """How the server ends the stream; frames that come before are passed over."""
        try:
            while True:
                self.read(timeout)
        except EndedError as error:
            return error

    def close(self) -> None:
        """Hang up."""
        self._loop.run(self._channel.close())
