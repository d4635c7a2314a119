"""The hub: every node's stream at the server; who is there, what they are asked, what they answer.

The rules:
1. A stream belongs to the certificate that opened it. Name and number of a node come from there, never from a frame.
2. One stream a node. A second one of the same process takes the first one's place; of another process it is refused.
3. What is asked survives a reconnect: it is sent again on the next stream. A node that stays away longer than the grace
   is given up for what it was asked; it may come back for what follows. One that has been away so long, or was shown
   the door, keeps no round waiting.
4. A revoked or expired identity loses its open stream within a second.

Everything here runs on the server's event loop, except what says "from any thread".
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc.aio

from ..privacy.channel import words
from ..privacy.channel.credentials import Peer
from ..privacy.channel.frames import LIMITS, Limits
from ..privacy.errors import ChannelError, DatabaseError
from .asks import Arrived, Ask
from .room import Room
from .stream import NodeStream, NodeView
from .witnesses import Witnesses

log = logging.getLogger("privet.server")

GRACE_SECONDS = 60.0  # a node that was restarted is back by then
_DENIED_EVERY_SECONDS = 0.25  # so that a revoked stream ends within a second
# Heads that are countersigned at once: each waits for the disk, and a disk serves many waits as fast as one.
_HEADS_AT_ONCE = 32
_SENDS_AT_ONCE = 4  # large messages on their way out; each holds about two chunks
_PLACE_SECONDS = 5.0  # for which one of them keeps the others waiting: a slow reader goes on beside them
STALL_SECONDS = 60.0  # without a chunk of a body that was granted; keepalive finds dead peers sooner
# Answers on their way in. An update must fit in; two of 40 MB keep the line and the sum busy.
ROOM_BYTES = 96 * 2**20


class Roll(Protocol):
    """The members of the federation, as far as a hub asks: see members.py."""

    def check(self, peer: Peer, now: float) -> None:
        """Raise ChannelError where the peer may not be connected now."""
        ...

    def node_id(self, name: str) -> int:
        """The node's number."""
        ...

    def denied_keys(self) -> frozenset[str]:
        """Fingerprints of revoked keys."""
        ...

    def revision(self) -> int:
        """Another number whenever the deny-list is another."""
        ...


@dataclass(frozen=True, slots=True)
class HubOptions:
    """What an operator of a server may set. `grace`, `stall`, `place`: seconds. `room`: bytes."""

    grace: float = GRACE_SECONDS
    limits: Limits = LIMITS
    room: int = ROOM_BYTES
    stall: float = STALL_SECONDS
    place: float = _PLACE_SECONDS


class Hub:
    """All nodes' streams."""

    def __init__(
        self,
        roll: Roll,
        witnesses: Witnesses | None = None,
        options: HubOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tell_denied: Callable[[frozenset[str]], None] = lambda denied: None  # who else ends what is denied
        self.options = options or HubOptions()
        self.room = Room(self.options.room)
        self._sends = asyncio.Semaphore(_SENDS_AT_ONCE)
        self.clock = clock
        self.witnesses = witnesses
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="deny-list")
        self.signing = ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="witness")
        self.roll = roll
        self.denied: frozenset[str] = frozenset()
        self._revision: int | None = None
        self._streams: dict[int, NodeStream] = {}
        self._names: dict[int, str] = {}
        self._keys: dict[int, str] = {}  # with which a node was connected last
        self._asks: dict[bytes, Ask] = {}
        self._given_up: dict[int, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._left: dict[int, float] = {}  # when, by node
        self._changed = threading.Condition()
        self._views: list[NodeView] = []  # another list where something has changed that somebody may wait for
        self._places: dict[int, int] = {}  # in it, by node

    # ---- from any thread ----

    def nodes(self) -> Sequence[NodeView]:
        """Who is connected, in order of name."""
        return self._views

    def name_of(self, node_id: int) -> str:
        """The name in the certificate of a node that was connected once; else empty."""
        return self._names.get(node_id, "")

    def is_denied(self, node_id: int) -> bool:
        """Whether the key with which the node was connected last is revoked."""
        return self._keys.get(node_id) in self.denied

    def wait_for_change(self, seen: Sequence[NodeView], timeout: float | None) -> Sequence[NodeView]:
        """Who is connected, as soon as that is another than `seen`, or after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._views is not seen, timeout)
            return self._views

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        with self._changed:
            self._views = [*self._views]
            self._changed.notify_all()

    def post(self, asks: Iterable[Ask]) -> None:
        """Ask, and deliver the answers to the asks' mailboxes."""
        self._loop.call_soon_threadsafe(self._post, list(asks))

    def forget(self, ids: Iterable[bytes]) -> None:
        """Nobody waits for these any more."""
        self.let_go(partial(self._forget, list(ids)))

    def let_go(self, of_what: Callable[[], None]) -> None:
        """Have the loop let go of something. Where the server has stopped, all is let go of."""
        try:
            self._loop.call_soon_threadsafe(of_what)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # ---- streams ----

    async def connect(self, context: "grpc.aio.ServicerContext[Any, Any]", peer: Peer) -> None:
        """Serve one node's stream to its end. `peer`: as the gate has found it."""
        node_id = await asyncio.to_thread(self.roll.node_id, peer.identity.name)
        stream = NodeStream(self, context, peer, node_id)
        try:
            await self._serve(stream)
        except ChannelError as error:
            log.warning("node %s: its stream ends: %s", peer.identity.name, error.message)
            await context.abort(stream.status, f"{error.message}; {error.remedy}")

    def enter(self, stream: NodeStream) -> None:
        """The stream has said who it is: it takes its place, or raises ChannelError where another process has it."""
        if stream.peer.key_fingerprint in self.denied:  # revoked between the gate and the hello
            stream.status = grpc.StatusCode.PERMISSION_DENIED
            raise ChannelError(f"{stream.name} was revoked", "ask the coordinator")
        before = self._streams.get(stream.node_id)
        if before is not None:
            if before.instance != stream.instance:
                stream.status = grpc.StatusCode.ALREADY_EXISTS
                raise ChannelError(
                    f"{stream.name} is connected already, from {before.address}: two processes have one identity",
                    "stop one of them; whoever copied the identity must join under a name of its own",
                )
            before.end("its process opened another stream")
        self._streams[stream.node_id] = stream
        self._left.pop(stream.node_id, None)
        self._names[stream.node_id], self._keys[stream.node_id] = stream.name, stream.peer.key_fingerprint
        timer = self._given_up.pop(stream.node_id, None)
        if timer is not None:
            timer.cancel()
        for ask in self._asks.values():
            if ask.node_id == stream.node_id:
                stream.send(ask)
        log.info("node %s connected from %s", stream.name, stream.address)
        self.changed()

    def changed(self) -> None:
        """What is offered, or by whom, is another now."""
        streams = sorted(self._streams.values(), key=lambda stream: stream.name)
        with self._changed:
            self._places = {stream.node_id: place for place, stream in enumerate(streams)}
            self._views = [stream.view() for stream in streams]
            self._changed.notify_all()

    def note_answer(self, stream: NodeStream) -> None:
        """The node has answered, which its view tells; nobody is woken for it."""
        with self._changed:
            if self._streams.get(stream.node_id) is stream:
                self._views[self._places[stream.node_id]] = stream.view()

    def asked(self, ask_id: bytes, node_id: int, run_id: str) -> Ask | None:
        """The ask that an answer belongs to; None where nobody waits for it, from this node, in this run."""
        ask = self._asks.get(ask_id)
        return ask if ask is not None and (ask.node_id, ask.run_id) == (node_id, run_id) else None

    def is_waited_for(self, ask: Ask) -> bool:
        """Whether the ask is not over."""
        return ask.id in self._asks

    def waiting(self, ask_id: bytes) -> Ask | None:
        """The ask of that id, where it is not over."""
        return self._asks.get(ask_id)

    def answered(self, arrived: Arrived) -> None:
        """Hand over an answer; the ask is over."""
        if self._asks.pop(arrived.ask.id, None) is None:
            arrived.release()
            return
        arrived.ask.mailbox.put(arrived)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """A place among the large messages that go out. Who is slow loses it to others, and goes on without."""
        await self._sends.acquire()
        place = [self._sends.release]

        def leave() -> None:
            if place:
                place.pop()()

        timer = self._loop.call_later(self.options.place, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

    async def watch_denied(self) -> None:
        """Look at the deny-list, and at expiry, until cancelled: end the streams that may not go on."""
        is_readable = True
        while True:
            await asyncio.sleep(_DENIED_EVERY_SECONDS)
            self._end_expired()
            try:
                await self._end_denied()
            except Exception as error:  # a database that cannot be asked now; the streams stay, and so does the watch
                if is_readable:  # four times a second would fill the disk that may be the reason
                    log.error("the deny-list cannot be read: %s", error)
                is_readable = False
                continue
            if not is_readable:
                log.info("the deny-list can be read again")
            is_readable = True

    async def close(self) -> None:
        """End every stream."""
        for stream in list(self._streams.values()):
            stream.end("the server stops")
        self.signing.shutdown(wait=False)
        self._watcher.shutdown(wait=False)

    # ---- the loop's own ----

    async def _end_denied(self) -> None:
        ask = partial(self._loop.run_in_executor, self._watcher)  # its own thread: others may wait for theirs
        revision = await ask(self.roll.revision)
        now = self.clock()
        if revision != self._revision:
            self.denied = await ask(self.roll.denied_keys)
            self.tell_denied(self.denied)
            streams = list(self._streams.values())
            for stream in streams:  # first those whose key is known to be denied: no question to the database each
                if stream.peer.key_fingerprint in self.denied:
                    stream.end(f"{stream.name} was revoked", grpc.StatusCode.PERMISSION_DENIED)
            for stream in streams:
                stream.tell_denied(self.denied)
                await self._check(stream, now)
            self._revision = revision  # only now: what failed on the way is done again

    def _end_expired(self) -> None:
        now = self.clock()
        for stream in [s for s in self._streams.values() if s.peer.not_after.timestamp() <= now]:
            stream.end("its certificate has expired", grpc.StatusCode.UNAUTHENTICATED)

    async def _serve(self, stream: NodeStream) -> None:
        try:
            await stream.serve()
        finally:
            self._leave(stream)
            await stream.quiet()

    async def _check(self, stream: NodeStream, now: float) -> None:
        try:
            await self._loop.run_in_executor(self._watcher, self.roll.check, stream.peer, now)
        except DatabaseError:  # says nothing of the node
            raise
        except ChannelError as error:
            stream.end(error.message, grpc.StatusCode.PERMISSION_DENIED)

    def _leave(self, stream: NodeStream) -> None:
        if self._streams.get(stream.node_id) is not stream:
            return
        del self._streams[stream.node_id]
        is_expelled = stream.status is grpc.StatusCode.PERMISSION_DENIED
        self._left[stream.node_id] = -math.inf if is_expelled else self._loop.time()
        log.info("node %s disconnected", stream.name)
        self._await_return(stream.node_id)
        self.changed()

    def _await_return(self, node_id: int) -> None:
        """Give the node up for what it was asked, unless it connects within the grace."""
        if node_id not in self._given_up and any(ask.node_id == node_id for ask in self._asks.values()):
            until = self._left.get(node_id, self._born) + self.options.grace
            self._given_up[node_id] = self._loop.call_at(until, self._give_up, node_id)

    def _give_up(self, node_id: int) -> None:
        self._given_up.pop(node_id, None)
        for ask in [ask for ask in self._asks.values() if ask.node_id == node_id]:
            self.answered(Arrived(ask, None, lost=words.DISCONNECTED))

    def _post(self, asks: list[Ask]) -> None:
        for ask in asks:
            self._asks[ask.id] = ask
            stream = self._streams.get(ask.node_id)
            if stream is not None:
                stream.send(ask)
            else:
                self._await_return(ask.node_id)

    def _forget(self, ids: list[bytes]) -> None:
        for ask_id in ids:
            ask = self._asks.pop(ask_id, None)
            stream = self._streams.get(ask.node_id) if ask else None
            if stream is not None:
                stream.drop(ask_id)
